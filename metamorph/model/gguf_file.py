"""A GGUF file, llama.cpp's format: metadata, and tensors that are decoded one at a time.

    magic, version, counts | key, type, value ... | name, shape, type, offset ... | padding | data

Every count and size is checked against the file before anything of that size is made, so that a
damaged file costs a sentence and no memory.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamorph.errors import UserError, in_words, shown, within
from metamorph.folders import check_file
from metamorph.libraries import gguf_absence

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, where a file names no other
MOST_KEYS = 10_000
MOST_TENSORS = 100_000
MOST_ITEMS = 10_000_000  # of an array: the largest are vocabularies and their merges
LONGEST_TEXT = 10_000_000  # bytes
MOST_DIMENSIONS = 4
# What a value of the header is, by the number of its type in the file.
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
TEXT, ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies and how it is stored. `shape` is as PyTorch has it, rows first."""

    name: str
    shape: tuple[int, ...]
    kind: str  # F32, BF16, Q4_1 ...
    number: int  # of that kind, in the file
    start: int  # bytes from the beginning of the file
    size: int  # bytes


class GGUFFile:
    """An open file: `metadata` by key, `tensors` by name. Raises `UserError` where it is damaged,
    or where the package gguf, which knows the quantised types, is absent."""

    def __init__(self, path: str | Path):
        self.path = check_file(Path(path), "a GGUF file")
        require_gguf(str(self.path))
        with within(self.path):
            with self.path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise UserError("not a GGUF file: it does not begin with GGUF")
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = _Reader(self._bytes)
            version, tensors, keys = reader.numbers("IQQ")
            if version not in VERSIONS:
                raise UserError(f"GGUF version {version}, expected 2 or 3, little-endian")
            self.metadata = _metadata(reader, _at_most(keys, MOST_KEYS, "keys"))
            self.tensors = _tensors(
                reader, _at_most(tensors, MOST_TENSORS, "tensors"), self.metadata
            )

    def read(self, tensor: GGUFTensor) -> Tensor:
        """The tensor's values in fp32, those of blocks decoded. Raises `UserError`, which does not
        name the file, for a type that the package gguf cannot decode."""
        from gguf import GGMLQuantizationType, dequantize

        raw = np.frombuffer(self._bytes, np.uint8, tensor.size, tensor.start)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        try:
            values = dequantize(rows, GGMLQuantizationType(tensor.number))
        except NotImplementedError as error:
            raise UserError(
                f"the tensor {tensor.name!r} is of type {tensor.kind}, which the package gguf "
                f"cannot decode"
            ) from error
        # The file's own bytes may not be written to: what is no block is a view of them.
        return torch.from_numpy(np.require(values, np.float32, "W")).reshape(tensor.shape)


def require_gguf(what: str) -> None:
    """Raises `UserError`, by which `what` cannot be read, where the package gguf is absent."""
    reason = gguf_absence("cpu")
    if reason is not None:
        raise UserError(f"{what} needs the package gguf ({reason}; pip install gguf)")


class _Reader:
    """Takes value after value of the header; `UserError` where the file ends before one does."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, len(MAGIC)

    def numbers(self, form: str) -> tuple:
        form = f"<{form}"
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def text(self) -> str:
        (length,) = self.numbers("Q")
        try:
            return self._take(_at_most(length, LONGEST_TEXT, "bytes of a text")).decode()
        except UnicodeDecodeError:
            raise UserError("a text of its header is not UTF-8") from None

    def value(self) -> Any:
        (kind,) = self.numbers("I")
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.numbers(_number(kind))[0]
        kind, count = self.numbers("IQ")
        _at_most(count, MOST_ITEMS, "values of an array")
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        return list(self.numbers(f"{count}{_number(kind)}"))

    def _take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise UserError("it ends within its header")
        self.at += size
        return self.data[self.at - size : self.at]


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise UserError(f"a value of its header is of the unknown type {kind}")
    return NUMBERS[kind]


def _at_most(count: int, most: int, what: str) -> int:
    if count > most:
        raise UserError(f"its header counts {count} {what}, expected at most {most}")
    return count


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    found = {}
    for _ in range(count):
        key = reader.text()
        if key in found:
            raise UserError(f"the key {shown(key)} is there twice")
        found[key] = reader.value()
    return found


def _tensors(reader: _Reader, count: int, metadata: dict) -> dict[str, GGUFTensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    table = []
    for _ in range(count):
        name = reader.text()
        (dimensions,) = reader.numbers("I")
        shape = reader.numbers(f"{_at_most(dimensions, MOST_DIMENSIONS, 'dimensions')}Q")[::-1]
        table.append((name, shape, *reader.numbers("IQ")))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise UserError(f"general.alignment is {shown(alignment)}, expected a number of bytes")
    begin = math.ceil(reader.at / alignment) * alignment
    found = {}
    for name, shape, number, offset in table:
        if name in found:
            raise UserError(f"the tensor {name!r} is there twice")
        try:
            kind = GGMLQuantizationType(number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            reason = f"is of the unknown type {number}: {in_words(error)}"
            raise UserError(f"the tensor {name!r} {reason}") from error
        if not shape or 0 in shape or shape[-1] % block:
            raise UserError(f"the tensor {name!r} has shape {shape}, in blocks of {block}")
        size = math.prod(shape) // block * block_bytes
        if begin + offset + size > len(reader.data):
            raise UserError(
                f"the tensor {name!r} would end at byte {begin + offset + size}, but the file has "
                f"{len(reader.data)}: it was not copied whole"
            )
        found[name] = GGUFTensor(name, shape, kind.name, number, begin + offset, size)
    return found
