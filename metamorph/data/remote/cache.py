"""Local copies of remote files in a folder with a limit; those used last are kept.

Any number of processes share it. A copy appears whole or not at all. Whoever fetches one holds its
lock; whoever makes room holds that of the folder. A copy that is read may be removed meanwhile: an
open file stays readable, and the next reader fetches it again.
"""

import fcntl
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from metamorph.data.remote.addresses import RemoteFile, open_filesystem
from metamorph.data.remote.downloads import patiently, pieces
from metamorph.errors import UserError, in_words
from metamorph.lock import WITHOUT_FLOCK

GIGA = 10**9
COPY, PART, LOCK = ".tar", ".part", ".lock"
ROOM = f"room{LOCK}"


@dataclass(frozen=True)
class ShardCache:
    """`limit`: bytes of all copies together. It holds but for what other processes fetch in the
    same moment."""

    folder: Path
    limit: int

    def path_of(self, file: RemoteFile, suffix: str) -> Path:
        """Where something of a file lies. Another version of it lies elsewhere."""
        told_by = f"{file.address} {file.size} {file.version}"
        return self.folder / (hashlib.sha256(told_by.encode()).hexdigest()[:32] + suffix)

    def open(self, file: RemoteFile) -> BinaryIO:
        """The local copy, fetched first if need be.

        Raises `UserError` for a file that is not there or larger than the limit, `Halted` if it
        cannot be fetched.
        """
        while True:
            path = self._fetched(file)
            with suppress(FileNotFoundError):  # another process has made room meanwhile
                opened = path.open("rb")
                with suppress(OSError):
                    os.utime(path)  # used last
                return opened

    def _fetched(self, file: RemoteFile) -> Path:
        path = self.path_of(file, COPY)
        if path.exists():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.path_of(file, LOCK)):
            if not path.exists():  # as it may by now
                try:
                    patiently(file.address, lambda: self._fetch(file))
                except (FileNotFoundError, PermissionError) as error:
                    problem = f"{file.address} cannot be fetched: {in_words(error)}"
                    raise UserError(f"data.path: {problem}") from error
        return path

    def _fetch(self, file: RemoteFile) -> None:
        part = self.path_of(file, f".{os.getpid()}{PART}")
        self._make_room(file.size or 0, part)
        filesystem, path = open_filesystem(file.address)
        try:
            with part.open("r+b") as copy:
                for piece in pieces(filesystem, path):
                    copy.write(piece)
                size = copy.tell()
                copy.truncate()
                if file.size is not None and size != file.size:
                    raise OSError(f"{size} bytes came of {file.size}")
            if file.size is None:
                self._make_room(size, part)
            os.replace(part, self.path_of(file, COPY))
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, needed: int, part: Path) -> None:
        """Removes the copies that were not used for longest, and claims `needed` bytes."""
        if needed > self.limit:
            raise UserError(
                f"data.cache_gigabytes: a tar has {needed / GIGA:.3g} GB, expected a limit of more "
                f"than {self.limit / GIGA:g}"
            )
        with _locked(self.folder / ROOM):
            self._remove_abandoned(part)
            held = sum(_size(other) for other in self.folder.glob(f"*{PART}") if other != part)
            copies = sorted((_used(copy), copy) for copy in self.folder.glob(f"*{COPY}"))
            held += sum(_size(copy) for _, copy in copies)
            for _, copy in copies:
                if held + needed <= self.limit:
                    break
                held -= _size(copy)
                copy.unlink(missing_ok=True)
            if not part.exists():
                part.touch()
                os.truncate(part, needed)  # takes no place yet, and is counted

    def _remove_abandoned(self, own: Path) -> None:
        """What processes left that were killed while they fetched: nobody holds its lock."""
        for part in self.folder.glob(f"*{PART}"):
            if part == own:
                continue
            lock_of_it = self.folder / (part.name.partition(".")[0] + LOCK)
            with suppress(OSError), lock_of_it.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """One process at a time. A network's file system may have no locks; there two may fetch the
    same file, each for itself."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in WITHOUT_FLOCK:
                raise
        yield


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
