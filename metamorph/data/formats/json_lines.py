"""Records as one JSON object a line, with images and videos below a folder."""

import json
from array import array
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metamorph.data.formats.records import Folder, Record
from metamorph.errors import UserError


class JsonLines:
    """A JSONL file. Only line offsets are kept in memory, 16 bytes a line; a line is parsed when
    its turn comes."""

    blocks = None

    def __init__(
        self,
        path: Path,
        image_root: Path,
        max_pixels: int,
        names: Mapping[str, str],
        follow_links: bool = False,
    ):
        if not path.is_file():
            raise UserError(f"data.path: {path} does not exist, expected a JSONL file")
        if not image_root.is_dir():
            raise UserError(f"data.image_root: {image_root} is not a folder")
        self.path, self.names = path, names
        self.files = Folder(image_root, max_pixels, follow_links)
        self.offsets, self.numbers = _lines_with_content(path)
        if not len(self.offsets):
            raise UserError(f"data.path: {path} holds no samples")

    def __len__(self) -> int:
        return len(self.offsets)

    def record(self, position: int) -> Record:
        with self.path.open("rb") as file:
            file.seek(self.offsets[position])
            line = file.readline()
        values = json.loads(line)
        return Record(self.where(position), values, self.files, self.names)

    def where(self, position: int) -> str:
        return f"{self.path}:{self.numbers[position]}"


def _lines_with_content(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Byte offsets and numbers, from 1, of the lines that are not blank: two int64 arrays."""
    offsets, numbers = array("q"), array("q")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                offsets.append(offset)
                numbers.append(number)
            offset += len(line)
    return np.frombuffer(offsets, np.int64), np.frombuffer(numbers, np.int64)
