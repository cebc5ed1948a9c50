"""Folders and files that a user names: what is said of one that is not there."""

import re
from pathlib import Path

from metamorph.errors import UserError

DOWNLOADS = "models"  # where the recipes look for what was downloaded
DATA = "data"
# ORG/NAME, or the address of its page.
HUB_NAME = re.compile(
    r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)?"
    r"(?P<name>\w[\w.-]*/(?P<last>\w[\w.-]*))(?:/tree/[\w.-]+)?/?"
)


def check_folder(folder: str | Path, key: str = "") -> Path:
    """The folder as a path. Nothing is ever downloaded in its place.

    Raises `UserError` unless it is a folder; the message begins with `key` if that is given, and
    has the command for a download if it may be the name of a model on Hugging Face's hub.
    """
    path = Path(folder)
    if path.is_dir():
        return path
    where = f"{key}: {folder}" if key else str(folder)
    if path.is_file():
        raise UserError(f"{where} is a file, expected a folder")
    if path.is_symlink():
        raise UserError(f"{where} is a link to nothing, expected a folder")
    found = HUB_NAME.fullmatch(str(folder))
    # Where the command would have put it, it was not yet: that is no name of the hub.
    if found is None or path.parent.is_dir() or path.parent == Path(DOWNLOADS):
        raise UserError(f"{where} does not exist, expected a folder")
    name, local = found["name"], f"{DOWNLOADS}/{found['last']}"
    raise UserError(
        f"{where} is no folder here, and nothing is downloaded unasked; if it is a model on "
        f"Hugging Face, run `hf download {name} --local-dir {local}` and give {local}"
    )


def check_data_set(path: Path, key: str) -> None:
    """Raises `UserError` with the command for a download where data are missing whose path may be
    the name of a data set on Hugging Face's hub. Other paths are for those who read them."""
    found = HUB_NAME.fullmatch(str(path))
    if found is None or path.parent.exists() or path.parent == Path(DATA):
        return
    if path.suffix.lower() in (".json", ".jsonl", ".parquet", ".tar", ".yaml", ".yml"):
        return
    name, local = found["name"], f"{DATA}/{found['last']}"
    raise UserError(
        f"{key}: {path} is not here, and nothing is downloaded unasked; if it is a data set on "
        f"Hugging Face, run `hf download {name} --repo-type dataset --local-dir {local}` and give "
        f"what is in {local}"
    )


def check_result(path: Path, kind: str) -> None:
    """Raises `UserError` where a file is missing because its folder is that of a whole run, which
    has its result, of this `kind` (model or decoder), in a folder of that name."""
    result = path.parent / kind
    if not path.exists() and (result / path.name).exists():
        raise UserError(f"{path.parent} is the folder of a run, whose {kind} is {result}")


def check_file(path: Path, expected: str) -> Path:
    """The path of a file that is needed. Raises `UserError` that says what is there in its place,
    or that its folder is missing. `expected`: what it should be, in words."""
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise UserError(f"{path} is a folder, expected {expected}")
        if path.is_symlink():
            raise UserError(f"{path} is a link that leads nowhere, expected {expected}")
        if path.exists():
            raise UserError(f"{path} is a device, expected {expected}")
        check_folder(path.parent)
    except OSError as error:  # a folder above may not be entered
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    raise UserError(f"{path}: no such file, expected {expected}")
