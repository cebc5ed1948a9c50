"""Records as rows of parquet files, with images as bytes in their columns.

An image cell is bytes, or `{"bytes": ...}` as Hugging Face datasets write it; a list holds
several. Reading one row means reading its row group, so the order keeps row groups together.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from metamorph.config.data_keys import Truncated
from metamorph.data.formats.records import Record, files_of
from metamorph.data.formats.row_groups import MOST_VALUES, check_group, read_group, values_in
from metamorph.data.images import Picture, StoredImage
from metamorph.data.video import Video, open_video
from metamorph.errors import SampleError, UserError, in_words, shown
from metamorph.libraries import require


class Parquet:
    """Rows of parquet files. The last row group that was read stays in memory, uncompressed."""

    def __init__(
        self,
        path: Path,
        max_pixels: int,
        names: Mapping[str, str],
        follow_links: bool = False,
        truncated: Truncated = "skip",
    ):
        require("data.source: parquet", ["pyarrow"], torch.device("cpu"))
        self.max_pixels, self.truncated, self.names = max_pixels, truncated, names
        self.groups: list[tuple[Path, int]] = []  # file, and number of the group in it
        self.blocks: list[int] = []  # rows of each group
        for file in files_of(path, ".parquet", follow_links):
            self._add(file)
        if not self.blocks:
            raise UserError(f"data.path: {path} holds no samples")
        self.starts = [0, *accumulate(self.blocks)]
        # A row group and its columns, or why it has none; read by one thread at a time.
        self._last: tuple[int, dict | SampleError] = (-1, {})
        self._lock = Lock()

    def _add(self, file: Path) -> None:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_metadata

        try:
            metadata = read_metadata(file)
        except (ArrowException, OSError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise UserError(f"data.path: {file} cannot be read as parquet: {problem}") from error
        for number in range(metadata.num_row_groups):
            check_group(file, metadata, number)
            rows = metadata.row_group(number).num_rows
            if rows > 0:
                self.groups.append((file, number))
                self.blocks.append(rows)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_last": (-1, {}), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=Lock())

    def __len__(self) -> int:
        return self.starts[-1]

    def _place(self, position: int) -> tuple[int, int]:
        """The row group of a row, and its number there."""
        group = bisect_right(self.starts, position) - 1
        return group, position - self.starts[group]

    def where(self, position: int) -> str:
        group, row = self._place(position)
        file, number = self.groups[group]
        return f"{file} row {row} of group {number}"

    def record(self, position: int) -> Record:
        group, row = self._place(position)
        columns = self._columns(group)
        where = self.where(position)
        return Record(
            where, _Row(columns, row), Cells(where, self.max_pixels, self.truncated), self.names
        )

    def _columns(self, group: int) -> dict[str, Any]:
        """The columns of a row group. Raises `SampleError` if they cannot be used."""
        with self._lock:
            if self._last[0] != group:
                self._last = (-1, {})  # before the next one takes its memory
                try:
                    self._last = group, read_group(*self.groups[group])
                except SampleError as error:  # once, not for each of its rows
                    self._last = group, error
            columns = self._last[1]
        if isinstance(columns, SampleError):
            raise SampleError(columns.cause, str(columns))
        return columns


@dataclass(frozen=True)
class _Row(Mapping):
    """The cells of one row. One becomes a Python object when it is asked for."""

    columns: dict[str, Any]
    row: int

    def __getitem__(self, name: str) -> Any:
        column = self.columns[name]
        if sum(map(values_in, column.slice(self.row, 1).chunks)) > MOST_VALUES:
            raise ValueError(f"{shown(name)}: its lists hold more than {MOST_VALUES} values")
        try:
            return column[self.row].as_py()
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"{shown(name)}: unreadable cell: {in_words(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True)
class Cells:
    """Images and videos that lie in the cells of a row."""

    where: str
    max_pixels: int
    truncated: Truncated

    def picture(self, value: Any) -> Picture:
        read = _Bytes(_data(value))
        return StoredImage(f"of {self.where}", read, self.max_pixels, self.truncated)

    def video(self, value: Any, frame_rate: float) -> Video:
        name = value.get("path") if isinstance(value, dict) else None
        return open_video(name or "video.mp4", _data(value), self.max_pixels)


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    def __call__(self) -> bytes:
        return self.data


def _data(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ValueError(f"image: expected bytes, got {shown(value)}")
    return data
