"""A file that lists every sample that cannot be used, for who wants to mend them all."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from metamorph.errors import SampleError, UserError

OnBad = Callable[[str, SampleError], None]  # is told the part of the data, and what was wrong
FIELDS = ("part", "cause", "message")


def ignore(part: str, error: SampleError) -> None:
    """Where nobody asked for a list."""


@contextmanager
def bad_list(path: Path | None) -> Generator[OnBad, None, None]:
    """Writes a JSON line for each bad sample that it is told of; none without a `path`.

    An earlier list is replaced. Raises `UserError` for any other file.
    """
    if path is None:
        yield ignore
        return
    if path.is_dir():
        raise UserError(f"--bad: {path} is a folder, expected a file to write")
    if path.exists() and not _is_list(path):
        raise UserError(f"--bad: {path} exists and is no list of bad samples; name a new file")
    with path.open("w", encoding="utf-8", buffering=1) as file:  # by lines: the run may be stopped

        def add(part: str, error: SampleError) -> None:
            values = (part, error.cause, str(error))
            file.write(json.dumps(dict(zip(FIELDS, values, strict=True))) + "\n")

        yield add


def _is_list(path: Path) -> bool:
    """Whether a file is empty or begins as `bad_list` would write it."""
    with path.open("rb") as file:
        line = file.readline(10_000)
    try:
        return not line or tuple(json.loads(line)) == FIELDS
    except (ValueError, TypeError, RecursionError):
        return False
