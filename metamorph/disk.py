"""Files that appear whole or not at all and can be checked, and what a full disk says."""

import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PIECE = 2**28  # bytes
BLOCK = 2**20  # bytes that are read at a time

# Nothing is wrong with the run: there is no place to write to, and there may be later.
NO_PLACE = {
    errno.ENOSPC,  # the disk is full
    errno.EDQUOT,  # the user's share of it is
    errno.EFBIG,  # the file may not become so large
    errno.EROFS,  # the disk became, or was mounted, read-only
}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers end their messages


def temporary_beside(path: Path) -> Path:
    """A name beside `path`, this process's own, for what shall take its place.

    What a killed process has left there is removed, that of one that lives is not: of this machine,
    for a folder has one writer at a time (`metamorph.lock`).
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not is_running(int(pid)):
            remove(left)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; when the body succeeds, bring what it wrote to the disk
    and rename it onto `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual)  # safetensors leaves what it writes to its owner alone
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file of UTF-8 text, or leave the one that is there. A folder that has its name
    is set aside."""
    if path.is_dir():
        set_aside(path)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append(path: Path, data: bytes) -> None:
    """Puts all of `data` at the end of a file. Raises `OSError` if the disk does not take it; the
    file then ends as before."""
    with path.open("ab", buffering=0) as file:
        end, written = file.seek(0, os.SEEK_END), 0
        try:
            while written < len(data):  # a disk may take a part first
                written += file.write(data[written:])
        except OSError:
            file.truncate(end)
            raise


def sync(path: Path) -> None:
    """Returns once a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a folder or file; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def set_aside(path: Path) -> None:
    """Frees a name, by giving what has it a name beside it that nothing has."""
    beside, number = path.with_name(f"{path.name}.aside"), 1
    while beside.exists() or beside.is_symlink():
        number += 1
        beside = path.with_name(f"{path.name}.aside-{number}")
    path.rename(beside)


def discard(folder: Path) -> None:
    """Removes a folder; a crash leaves no half of it under its name, but `.NAME.discarded`."""
    discarded = folder.with_name(f".{folder.name}.discarded")
    folder.rename(discarded)
    remove(discarded)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PieceHashes:
    """The SHA-256 of each `PIECE` bytes of a file that is written from its beginning to its end,
    so that the reading of a large one can be shared. A file of one piece has its usual SHA-256."""

    def __init__(self):
        self._ended: list[str] = []
        self._open, self._room = hashlib.sha256(), PIECE

    def update(self, data: bytes | memoryview) -> None:
        """What is written next."""
        left = memoryview(data).cast("B")
        while len(left) > self._room:
            self._open.update(left[: self._room])
            left = left[self._room :]
            self._ended.append(self._open.hexdigest())
            self._open, self._room = hashlib.sha256(), PIECE
        self._open.update(left)
        self._room -= len(left)

    def hexadecimal(self) -> list[str]:
        """Of all pieces, the last one as it is now; a file of nothing has one."""
        return [*self._ended, self._open.hexdigest()]


def piece_hash(path: Path, number: int) -> str:
    """The SHA-256 of one piece of a file, as `PieceHashes` counts them, from 0."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(number * PIECE)
        for _ in range(PIECE // BLOCK):
            found.update(file.read(BLOCK))
    return found.hexdigest()


def in_threads(function: Callable[..., T], *arguments: Iterable) -> list[T]:
    """`map`, with several calls at once: reading and hashing need no interpreter lock."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(function, *arguments))


def no_place(error: BaseException | None) -> OSError | None:
    """The `OSError` of a disk that takes nothing more, where that is what `error` means or was
    caused by, else None. Libraries raise one of their own in its place, or name it in a message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_PLACE:
            return error
        named = RUST_ERROR.search(str(error))
        if named and int(named[1]) in NO_PLACE:
            return OSError(int(named[1]), os.strerror(int(named[1])))
        error = error.__cause__ or error.__context__
    return None
