"""The exceptions whose message is meant for the person at the command line."""

import re
import reprlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

LONGEST_MESSAGE = 1000  # characters
LONGEST_VALUE = 200

_VALUES = reprlib.Repr()
_VALUES.maxlevel, _VALUES.maxdict, _VALUES.maxlist, _VALUES.maxtuple, _VALUES.maxset = 3, 4, 6, 6, 6
_VALUES.maxstring = _VALUES.maxlong = _VALUES.maxother = LONGEST_VALUE


def shown(value: object) -> str:
    """A value as a message shows it: of bounded length and depth, whatever a file held."""
    try:
        return _VALUES.repr(value)
    except ValueError:  # Python writes out no whole number of more than 4300 digits
        return f"{type(value).__name__} of thousands of digits"


def one_line(message: str) -> str:
    """A message that can be printed: what a file held may be long, and may hold line ends, half
    characters or codes that a terminal would obey."""
    if len(message) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        message = f"{message[:half]} ... {message[-half:]}"
    if message.isprintable():
        return message
    return printable(" ".join(message.split()))


def printable(line: str) -> str:
    """A line of text from a file, with half characters and codes for terminals written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


# What Python tells programmers of: a value of another kind than the code reckoned with.
_OF_KINDS = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)
_OF_PYTHON = re.compile(r"\b\w*(?:Error|Exception): ")


def in_words(error: BaseException) -> str:
    """What a library's error says of a file, in one line and without Python's own terms."""
    if isinstance(error, (*_OF_KINDS, NotImplementedError)) or not str(error):
        return "a field is missing or holds a value of another kind"
    return _OF_PYTHON.sub("", " ".join(str(error).split()))


class UserError(Exception):
    """A problem the user can fix. The message is one sentence: what, where, what was expected."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class ContextFull(UserError):
    """A conversation and the room for its answer have more tokens than the model can hold."""


class Halted(Exception):
    """A run had to end through no fault of what it was given: no place on the disk, or another
    process of it has died. The message is one sentence; the last checkpoint is kept."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


@contextmanager
def within(place: Path | str) -> Generator[None, None, None]:
    """The message of a `UserError` that comes out begins with `place`: the file that is read."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


class Stopped(Exception):
    """A run was asked to stop (Ctrl-C, SIGTERM) and has saved a checkpoint."""


class SampleError(Exception):
    """A sample that cannot be used. `cause` is a short name under which skips are counted."""

    def __init__(self, cause: str, message: str):
        super().__init__(cause, one_line(message))  # both, else it could not pass between processes
        self.cause = cause

    def __str__(self) -> str:
        return self.args[1]
