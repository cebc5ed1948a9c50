"""Records as rows of a data set of Hugging Face's library `datasets`, on its Hub or in a folder.

Rows lie in Arrow files that are mapped into memory, so any row is read at once and nothing is
decoded but by `Cells`, which knows limits. Code that a data set brings is never run: `datasets`
from version 4 on, the oldest that is taken, runs none.
"""

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
from metamorph.errors import SampleError, UserError, in_words, shown
from metamorph.libraries import require

SAVED = (
    "state.json",
    "dataset_dict.json",
)  # what `save_to_disk` leaves of one data set, of several
TRAIN = "train"


class HuggingFace:
    """The rows of one split. They stay on the disk."""

    blocks = None

    def __init__(
        self, path: Path, config: SourceConfig, max_pixels: int, truncated: Truncated = "skip"
    ):
        require("data.source: hf", ["datasets"], torch.device("cpu"))
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
    import datasets

    is_saved = any((path / name).is_file() for name in SAVED)
    if is_saved and (config.subset or config.revision):
        key = "subset" if config.subset else "revision"
        raise UserError(f"data.{key}: {path} is a saved data set, which has none; leave it out")
    if path.exists() and config.revision:
        raise UserError(f"data.revision: {path} is here, and has none; leave it out")
    try:
        if is_saved:
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(
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
    if isinstance(loaded, datasets.DatasetDict):
        split = config.split or TRAIN
        if split not in loaded:
            raise UserError(f"data.split: {path} has {', '.join(loaded)}, and no {shown(split)}")
        return loaded[split]
    if is_saved and config.split and config.split != str(loaded.split):
        raise UserError(
            f"data.split: {path} is one split, {loaded.split}, and not {shown(config.split)}"
        )
    return loaded
