"""Records as rows of a data set of Hugging Face's library `datasets`, on its Hub or in a folder.

Rows lie in Arrow files that are mapped into memory, so any row is read at once and nothing is
decoded but by `Cells`, which knows limits. Code that a data set brings is never run: `datasets`
from version 4 on, the oldest that is taken, runs none.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metamorph.config import SourceConfig
from metamorph.config.data_keys import Truncated
from metamorph.data.formats.parquet import Cells
from metamorph.data.formats.records import Record
from metamorph.data.formats.row_groups import LARGEST_GROUP, MOST_VALUES, values_in
from metamorph.data.formats.text import LONGEST_RECORD, read_object
from metamorph.data.images import reason
from metamorph.errors import SampleError, UserError, in_words, shown
from metamorph.libraries import require

SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves of one split, of several
HUB_NAME = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")
OF_FILES = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "jsonl", ".json": "jsonl"}
TRAIN = "train"


class HuggingFace:
    """The rows of one split. They stay on the disk."""

    blocks = None

    def __init__(
        self, path: Path, config: SourceConfig, max_pixels: int, truncated: Truncated = "skip"
    ):
        self.name = config.path
        self.max_pixels, self.truncated, self.names = max_pixels, truncated, config.fields
        opened = _open(path, config)
        self.rows = opened.with_format("arrow")  # as stored: no picture is decoded
        if not len(self.rows):
            raise UserError(f"data.path: {self.name} holds no samples")

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, position: int) -> str:
        return f"{self.name} row {position}"

    def record(self, position: int) -> Record:
        where = self.where(position)
        row = self.rows[position]  # a table of one row
        if row.nbytes > LARGEST_GROUP:
            raise SampleError(
                "row too large", f"the row takes {row.nbytes / 2**20:.0f} MiB, {_MOST} can be used"
            )
        cells = Cells(where, self.max_pixels, self.truncated)
        return Record(where, _Row(row), cells, self.names)


_MOST = f"at most {LARGEST_GROUP // 2**20} MiB"


@dataclass(frozen=True)
class _Row(Mapping):
    """The cells of a table of one row. One becomes a Python object when it is asked for."""

    table: Any

    def __getitem__(self, name: str) -> Any:
        if name not in self.table.column_names:
            raise KeyError(name)
        column = self.table.column(name)
        if sum(map(values_in, column.chunks)) > MOST_VALUES:
            raise ValueError(f"{shown(name)}: its lists hold more than {MOST_VALUES} values")
        try:
            return _as_records(column[0].as_py())
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"{shown(name)}: unreadable cell: {in_words(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.column_names)

    def __len__(self) -> int:
        return len(self.table.column_names)


def _as_records(value: Any) -> Any:
    """A list of objects that older versions of `datasets` stored as an object of lists."""
    if not isinstance(value, dict) or not value:
        return value
    columns = list(value.values())
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _open(path: Path, config: SourceConfig) -> Any:
    """The split that a configuration names. Raises `UserError`, whatever is wrong."""
    saved = _saved_split(path, config)
    require("data.source: hf", ["datasets"], torch.device("cpu"))
    import datasets

    try:
        if saved is not None:
            return datasets.Dataset.load_from_disk(str(saved))
        return datasets.load_dataset(
            str(path) if path.exists() else config.path,
            config.subset or None,
            split=config.split or TRAIN,
            revision=config.revision or None,
        )
    except Exception as error:  # of the library, of the network or of a file, in dozens of types
        where = "" if path.exists() else " on the Hub (HF_HUB_OFFLINE=1 takes what is here alone)"
        raise UserError(
            f"data.path: {config.path}{where} cannot be opened as a data set: {in_words(error)}"
        ) from error


def _saved_split(path: Path, config: SourceConfig) -> Path | None:
    """The folder that `save_to_disk` wrote of the split, None for what it did not write.

    Raises `UserError` for what cannot be a data set, and for keys that this one does not have.
    """
    if path.is_file():
        source = OF_FILES.get(path.suffix.lower())
        hint = f"; source: {source} reads such a file" if source else ""
        raise UserError(
            f"data.path: {path} is a file, and source hf takes a name on the Hub or a folder{hint}"
        )
    if not path.exists() and HUB_NAME.fullmatch(config.path) is None:
        raise UserError(
            f"data.path: {path} does not exist, expected a folder or a name on the Hub (ORG/NAME)"
        )
    if path.exists() and config.revision:
        raise UserError(f"data.revision: {path} is here, and has none; leave it out")
    one, several = (path / name for name in SAVED)
    if not (one.is_file() or several.is_file()):
        return None
    if config.subset:
        raise UserError(f"data.subset: {path} is a saved data set, which has none; leave it out")
    if one.is_file():
        own = _check_files(one).get("_split")
        if config.split not in ("", own or TRAIN):  # whoever names the folder alone means this one
            known = f"one split, {shown(own)}" if own else "one split without a name"
            raise UserError(f"data.split: {path} is {known}, and not {shown(config.split)}")
        return path
    split = config.split or TRAIN
    splits = _plain_names(several, _read(several).get("splits"))
    if split not in splits:
        raise UserError(f"data.split: {path} has {', '.join(splits)}, and no {shown(split)}")
    _check_files(path / split / one.name)
    return path / split


def _check_files(state: Path) -> dict[str, Any]:
    """What a saved split says of itself. Raises `UserError` for files outside its folder."""
    written = _read(state)
    files = written.get("_data_files")
    for file in files if isinstance(files, list) else [files]:
        _plain_names(state, [file.get("filename") if isinstance(file, dict) else file])
    return written


def _plain_names(file: Path, names: Any) -> list[str]:
    """`names` if none of them leads out of the folder of the file that lists them."""
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise UserError(
                f"data.path: {file} names {shown(name)}, expected names of what lies beside it"
            )
    return names


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            return read_object(opened.read(LONGEST_RECORD + 1), "it")
    except (OSError, ValueError) as error:
        raise UserError(f"data.path: {file} cannot be read: {reason(error)}") from error
