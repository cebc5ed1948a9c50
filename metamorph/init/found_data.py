"""What lies at a path that somebody names as their data: told by opening it as training would."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from metamorph.config import DataConfig, SourceConfig
from metamorph.config.data_keys import Generated, SourceKind
from metamorph.data.formats.hugging_face import SAVED
from metamorph.data.formats.picture_folder import ENDINGS
from metamorph.data.formats.records import Folder, Record, Records
from metamorph.data.images import opened, reason
from metamorph.data.links import is_clutter
from metamorph.data.mixture_file import read_mixture
from metamorph.data.opening import GENERATED, open_records
from metamorph.data.remote.addresses import is_address
from metamorph.errors import SampleError, UserError
from metamorph.folders import check_data_set
from metamorph.init.families import Guess, guess_family

LOOKED_AT = 24  # records, spread over all
MOST_FOLDERS = 50  # beside a file, in which its pictures may lie; or in a folder
MOST_NAMES = 8  # of files or folders, in a message
SOURCES: dict[str, SourceKind] = {
    ".jsonl": "jsonl", ".json": "jsonl", ".tar": "webdataset", ".parquet": "parquet",
    ".yaml": "mixture", ".yml": "mixture",
}  # fmt: skip
IN_FOLDERS = ("webdataset", "parquet")  # whose path may be a folder


@dataclass(frozen=True)
class FoundData:
    """`config`: the keys by which it is opened. `what`: it is, in words."""

    config: SourceConfig
    what: str


def find_data(name: str, words: bool, image_root: str = "") -> FoundData:
    """What `name` holds: a file, a folder, a pattern or the name of a generated source.

    `words`: whether samples need any. `image_root`: where the pictures of JSON records lie, empty
    to look for them. Raises `UserError` for what cannot be told or used.
    """
    if not name:
        raise UserError("--data: it is empty, expected a file or folder of samples")
    for scenes in get_args(Generated):
        if name == scenes and image_root:
            raise UserError(f"--image-root: {scenes} have no files of pictures; leave it out")
        if name == scenes:
            return FoundData(SourceConfig(source=scenes), "scenes that are generated, without end")
    if is_address(name):
        raise UserError(
            f"--data: {name} is elsewhere, and nothing is fetched to look at it; give one of its "
            f"tars here, and write the address into data.path then"
        )
    source, path = _source_of(Path(name))
    config = SourceConfig(source=source, path=str(path), image_root=image_root)
    if image_root and source != "jsonl":
        raise UserError(f"--image-root: {source} has its pictures within, only JSON names files")
    if source == "mixture":
        parts = read_mixture(path)
        return FoundData(config, f"a mixture of {len(parts)} parts")
    if source == "pictures":
        if words:
            raise UserError(
                f"data.path: {path} holds pictures and no words about them, from which only stage "
                f"decoder learns; expected JSON lines, tars or parquet{_within(path)}"
            )
        count = len(open_records(config, DataConfig(), Path()))
        return FoundData(config, f"{count:,} pictures of a folder")
    if source == "jsonl":
        return _with_root(config, words)
    records = open_records(config, DataConfig(), Path())
    return _found(config, len(records), guess_family(_some(records), words))


def _source_of(path: Path) -> tuple[SourceKind, Path]:
    """The kind of source, and its path: a folder may hold one file that is meant."""
    try:
        if not path.is_dir():
            if not path.exists() and not path.parent.is_dir():
                check_data_set(path, "--data")
            source = SOURCES.get(path.suffix.lower())
            if source is None or not (path.exists() or any(sign in path.name for sign in "*?[")):
                problem = "does not exist" if not path.exists() else "is no file of samples"
                raise UserError(
                    f"--data: {path} {problem}, expected a file that ends with "
                    f"{', '.join(SOURCES)}, a folder of tars, parquet files or pictures, or "
                    f"{' or '.join(GENERATED)}"
                )
            return source, path
        names = [file.name for file in path.iterdir() if not is_clutter(file.name)]
    except OSError as error:
        raise UserError(f"--data: {path} cannot be read: {reason(error)}") from error
    kinds = {name: SOURCES.get(Path(name).suffix.lower()) for name in names}
    if any(name in names for name in SAVED):
        return "hf", path
    of_files = sorted({kind for kind in kinds.values() if kind})
    if len(of_files) > 1:
        raise UserError(f"--data: {path} holds {' and '.join(of_files)} files; name one of them")
    if not of_files:
        if _has_picture(path):
            return "pictures", path
        raise UserError(
            f"--data: {path} holds no samples: no JSON, tar, parquet or picture{_within(path)}"
        )
    if of_files[0] in IN_FOLDERS:
        return of_files[0], path
    meant = [name for name, kind in kinds.items() if kind]
    if len(meant) > 1:
        raise UserError(
            f"--data: {path} holds {', '.join(sorted(meant)[:MOST_NAMES])}; name one of them"
        )
    return of_files[0], path / meant[0]


def _has_picture(folder: Path) -> bool:
    """Whether there is one, in folders within it too."""
    for _, folders, files in os.walk(folder):
        if any(not is_clutter(name) and Path(name).suffix[1:].lower() in ENDINGS for name in files):
            return True
        folders[:] = [name for name in folders if not is_clutter(name)]
    return False


def _within(path: Path) -> str:
    """Which folders in a folder hold samples, as `data` does in a clone of a data set's repository,
    for a message."""
    inside = [folder for folder in _folders_in(path) if _holds_samples(Path(folder))]
    return f"; some lie in {', '.join(inside[:MOST_NAMES])}" if inside else ""


def _holds_samples(folder: Path) -> bool:
    try:
        kinds = {SOURCES.get(file.suffix.lower()) for file in folder.iterdir()}
    except OSError:  # what may not be read is no advice
        return False
    return not kinds.isdisjoint(("jsonl", *IN_FOLDERS))


def _some(records: Records) -> list[Record]:
    """Records spread over all, without those that cannot be read."""
    found = []
    count = min(len(records), LOOKED_AT)
    for number in range(count):
        try:
            found.append(records.record(number * len(records) // count))
        except (SampleError, ValueError):
            continue
    return found


def _found(config: SourceConfig, count: int, guess: Guess) -> FoundData:
    config = replace(config, family=guess.family, fields=guess.fields)
    return FoundData(config, f"{count:,} records; some were opened, they are {guess.family}")


def _with_root(config: SourceConfig, words: bool) -> FoundData:
    """JSON records, with the folder in which most of their pictures can be opened."""
    folder = Path(config.path).parent
    roots = [config.image_root] if config.image_root else ["", *_folders_in(folder)]
    records = open_records(config, DataConfig(), Path())
    some = _some(records)
    best, most, problems = None, 0, []
    for root in roots:
        config = replace(config, image_root=root)
        files = Folder(Path(root) if root else folder, DataConfig().max_pixels)
        try:
            guess = guess_family([replace(record, files=files) for record in some], words)
        except UserError as error:
            problems.append(str(error))
            continue
        count, asked, problem = _openable(guess)
        if asked and not count:
            problems.append(f"--image-root: {problem}; give the folder that names start from")
        elif best is None or count > most:
            best, most = _found(config, len(records), guess), count
        if count == asked and (asked or len(guess.samples) == len(some)):
            break  # no folder would do better
    if best is None:
        raise UserError(problems[0])
    return best


def _folders_in(folder: Path) -> list[str]:
    inside = [path for path in folder.iterdir() if path.is_dir() and not is_clutter(path.name)]
    return [str(path) for path in sorted(inside)[:MOST_FOLDERS]]


def _openable(guess: Guess) -> tuple[int, int, str]:
    """How many first pictures of samples can be opened, of how many, and what is wrong else."""
    count, asked, problem = 0, 0, ""
    for sample in guess.samples:
        for picture in sample.images[:1]:
            asked += 1
            try:
                opened(picture)
                count += 1
            except SampleError as error:
                problem = problem or str(error)
    return count, asked, problem
