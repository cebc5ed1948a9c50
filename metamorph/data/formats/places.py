"""Where the records of a JSON file stand: its lines, or the elements of its array.

A file is gone through once, a chunk at a time, and only places are kept; a record is parsed when
its turn comes. So a broken one costs no other, and no file is too large.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHUNK = 2**20  # bytes read at a time
IS_SPACE = np.isin(np.arange(256), list(b" \t\r\n\v\f"))  # of each byte
NESTING = np.zeros(256, np.int64)  # of each byte: what it adds to the depth
NESTING[list(b"[{")], NESTING[list(b"]}")] = 1, -1
NEWLINE, QUOTE, COMMA, BACKSLASH = b'\n",\\'
IS_SIGN = np.isin(np.arange(256), list(b'[]{},"'))  # of each byte
NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Places:
    """Where each record stands: the bytes [start, end), and the number that it is called by.

    All int64 [records]. `is_cut`: the end of the array is missing, and with it the last record.
    """

    starts: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.starts)


def lines(path: Path, start: int) -> Places:
    """The lines after byte `start` that are not blank, numbered from 1."""
    starts, ends, filled = _stretches(path, start, _newlines)
    return Places(starts[filled], ends[filled], np.flatnonzero(filled) + 1)


def elements(path: Path, start: int) -> Places:
    """The elements of the array after byte `start`, numbered from 0.

    Raises `ValueError` if something follows the array.
    """
    array = _Array()
    starts, ends, filled = _stretches(path, start, array.borders)
    filled[0] = False  # before the first bracket
    if array.is_closed and filled[-1]:
        raise ValueError(f"something follows its array, at byte {starts[-1]}")
    filled[-1] = not array.is_closed
    return Places(
        starts[filled], ends[filled], np.flatnonzero(filled) - 1, is_cut=not array.is_closed
    )


def _stretches(
    path: Path, start: int, borders: Callable[[bytes], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies between the bytes that `borders` finds in chunk after chunk: starts, ends, and
    whether it holds more than space. All [borders + 1]."""
    found, filled = [], []
    offset, pending = start, 0  # bytes that are no space since the last border
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(CHUNK):
            at = borders(chunk)
            no_space = ~IS_SPACE[np.frombuffer(chunk, np.uint8)]
            before = np.concatenate([[0], np.cumsum(no_space)])  # [bytes + 1]
            after_last = np.concatenate([[0], before[at + 1]])  # at each border, the last first
            since = before[np.append(at, len(chunk))] - after_last
            since[0] += pending
            found.append(offset + at)
            filled.append(since[:-1] > 0)
            pending = int(since[-1])
            offset += len(chunk)
    all_borders = np.concatenate([*found, [offset]]).astype(np.int64)
    starts = np.concatenate([[start], all_borders[:-1] + 1]).astype(np.int64)
    return starts, all_borders, np.concatenate([*filled, [pending > 0]]).astype(bool)


def _newlines(chunk: bytes) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE)


class _Array:
    """Finds the brackets of one array, and the commas between its elements."""

    def __init__(self):
        self.depth = 0
        self.in_string = self.is_escaped = self.is_closed = False

    def borders(self, chunk: bytes) -> np.ndarray:
        data = np.frombuffer(chunk, np.uint8)
        signs = np.flatnonzero(IS_SIGN[data] & ~self._escaped(data))
        if self.is_closed or not len(signs):
            return NOTHING
        kinds = data[signs]
        in_string = np.logical_xor.accumulate(kinds == QUOTE) ^ self.in_string
        steps = np.where(in_string, 0, NESTING[kinds])
        depths = self.depth + np.cumsum(steps)
        self.in_string, self.depth = bool(in_string[-1]), int(depths[-1])
        opens = (steps == 1) & (depths == 1)
        commas = (kinds == COMMA) & ~in_string & (depths == 1)
        closes = (steps == -1) & (depths == 0)
        found = signs[opens | commas | closes]
        ends = signs[closes]
        self.is_closed = len(ends) > 0
        return found[found <= ends[0]] if self.is_closed else found

    def _escaped(self, data: np.ndarray) -> np.ndarray:
        """Of each byte, whether an odd number of backslashes stands before it."""
        at = np.flatnonzero(data == BACKSLASH)
        run_starts = np.maximum.accumulate(np.where(np.diff(at, prepend=-2) != 1, at, -1))
        lengths = at - run_starts + 1 + (self.is_escaped & (run_starts == 0))
        escaped = np.zeros(len(data) + 1, bool)
        escaped[0] = self.is_escaped
        escaped[at + 1] = lengths % 2 == 1
        self.is_escaped = bool(escaped[-1])
        return escaped[:-1]
