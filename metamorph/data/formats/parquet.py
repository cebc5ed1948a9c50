"""Records as rows of parquet files, with images as bytes in their columns.

An image cell is bytes, or `{"bytes": ...}` as Hugging Face datasets write it; a list holds
several. Reading one row means reading its row group, so the order keeps row groups together.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from metamorph.config.keys import Truncated
from metamorph.data.formats.records import Record, files_of
from metamorph.data.images import LARGEST_FILE, Picture, StoredImage, shorten
from metamorph.data.video import Video, open_video
from metamorph.errors import SampleError, UserError
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
        self._last: tuple[int, dict] = (-1, {})  # a row group and its columns

    def _add(self, file: Path) -> None:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_metadata

        try:
            metadata = read_metadata(file)
        except (ArrowException, OSError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise UserError(f"data.path: {file} cannot be read as parquet: {problem}") from error
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.total_byte_size > LARGEST_FILE:
                raise UserError(
                    f"data.path: row group {number} of {file} holds more than 1 GiB, which is read "
                    f"as a whole; write the file anew with row_group_size of some hundred rows"
                )
            if group.num_rows:
                self.groups.append((file, number))
                self.blocks.append(group.num_rows)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_last": (-1, {})}

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
        last, columns = self._last
        if group != last:
            columns = self._read(group)
            self._last = group, columns
        where = self.where(position)
        values = {name: column[row].as_py() for name, column in columns.items()}
        return Record(where, values, Cells(where, self.max_pixels, self.truncated), self.names)

    def _read(self, group: int) -> dict[str, Any]:
        """The columns of a row group. Raises `SampleError` if they cannot be read."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        file, number = self.groups[group]
        try:
            with ParquetFile(file) as parquet:
                table = parquet.read_row_group(number)
        except (ArrowException, OSError, ValueError) as error:
            message = f"{file} group {number}: {' '.join(str(error).split())}"
            raise SampleError("unreadable row group", message) from error
        return dict(zip(table.column_names, table.columns, strict=True))


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
        raise ValueError(f"image: expected bytes, got {shorten(repr(value))}")
    return data
