"""How large a terminal is, and what it says of itself when asked."""

import fcntl
import os
import re
import select
import struct
import termios
import time
import tty
from dataclasses import dataclass
from typing import TextIO

CELL = 8, 16  # pixels of a character, where the terminal does not tell
USUAL = 80, 24  # columns and rows
SECONDS = 0.5  # a terminal answers within milliseconds, over a slow line a little later
ASK = b"\x1b[c"
ANSWER = re.compile(rb"\x1b\[\?([\d;]*)c")
LONGEST_ANSWER = 256  # bytes


@dataclass(frozen=True)
class ScreenSize:
    columns: int
    rows: int
    width: int  # pixels, of all columns
    height: int

    @classmethod
    def of(cls, stream: TextIO) -> "ScreenSize":
        """The size of the terminal that a stream writes to, a usual one if it is none."""
        try:
            answer = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8))
        except OSError:
            answer = bytes(8)
        rows, columns, width, height = struct.unpack("4H", answer)
        columns, rows = columns or USUAL[0], rows or USUAL[1]
        return cls(columns, rows, width or columns * CELL[0], height or rows * CELL[1])


def device_attributes(source: int, target: int, seconds: float = SECONDS) -> list[int]:
    """What a terminal answers to being asked for its primary device attributes; empty if it does
    not in time. It is not asked while typed lines wait, for they would be read with the answer.

    `source`, `target`: descriptors to read from it and to write to it.
    """
    if select.select([source], [], [], 0)[0]:
        return []
    before = termios.tcgetattr(source)
    tty.setcbreak(source, termios.TCSANOW)  # the answer shall not be shown
    try:
        os.write(target, ASK)
        answer, end = b"", time.monotonic() + seconds
        while (found := ANSWER.search(answer)) is None and len(answer) < LONGEST_ANSWER:
            left = max(end - time.monotonic(), 0)
            if not select.select([source], [], [], left)[0]:
                return []
            answer += os.read(source, 1)  # not what may be typed behind it
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)
    return [] if found is None else [int(number) for number in found[1].split(b";") if number]
