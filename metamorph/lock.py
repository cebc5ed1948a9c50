"""A lock file: which process uses a folder, on which machine, since when.

A lock whose process has ended, however it ended, is taken over. That is looked up: on the same
machine by the number and start of the process, elsewhere only if Slurm has begun the same job anew.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from metamorph.disk import is_running
from metamorph.errors import UserError, within

FILE = "run.lock"
WITHOUT_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


@dataclass(frozen=True)
class Owner:
    """A process, told apart from any later one of the same number."""

    host: str
    boot: str  # what is new whenever the machine starts
    numbering: str  # of processes: a container may have its own
    pid: int
    started: str  # clock ticks since the boot
    job: str  # of Slurm, or empty
    restarts: int  # how often Slurm has begun it anew
    since: str  # time of the lock, UTC

    @classmethod
    def current(cls) -> "Owner":
        """This process, now."""
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            socket.gethostname(),
            _proc("sys/kernel/random/boot_id"),
            Path("/proc/self/ns/pid").resolve().name,
            os.getpid(),
            _start_of(os.getpid()),
            os.environ.get("SLURM_JOB_ID", ""),
            int(restarts) if restarts.isdigit() else 0,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def has_ended(self, seen_by: "Owner") -> bool | None:
        """Whether it is gone, as far as another process can see; None where it cannot."""
        if self.host == seen_by.host and self.boot != seen_by.boot:
            return True  # the machine started anew
        if (self.host, self.numbering) == (seen_by.host, seen_by.numbering):
            return not is_running(self.pid) or _start_of(self.pid) not in (self.started, "")
        if self.job and self.job == seen_by.job and self.restarts < seen_by.restarts:
            return True
        return None


def _proc(name: str) -> str:
    """What the kernel says in a file; nothing where it hides it."""
    try:
        return Path("/proc", name).read_text().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started; "ended" of one that only waits for its parent to notice."""
    fields = _proc(f"{pid}/stat").rpartition(")")[2].split()  # a name may hold anything
    if not fields:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


@contextmanager
def locked(folder: Path, key: str = "output") -> Generator[None]:
    """This process has `folder` for itself, as long as all others ask in this way.

    Raises `UserError`, in one sentence that begins with `key`, if another one has it.
    """
    own = Owner.current()
    with within(key):
        _take(folder / FILE, own)
    try:
        yield
    finally:
        _give_back(folder / FILE, own)


def _take(path: Path, own: Owner) -> None:
    taken = False
    while not taken:
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            _wait_for_turn(file)
            if not _is_at(path, file):  # it was given back while we waited
                continue
            owner = _read(file)
            if owner is not None:
                _check_ended(path, owner, own)
            file.truncate(0)
            json.dump(asdict(own), file)
            taken = True


def _check_ended(path: Path, owner: Owner, own: Owner) -> None:
    ended = owner.has_ended(seen_by=own)
    if ended:
        return
    who = f"{path.parent} is in use by process {owner.pid} on {owner.host}"
    age = datetime.now(UTC) - datetime.fromisoformat(owner.since)
    age = str(max(age, timedelta(0))).partition(".")[0]  # another machine's clock may be ahead
    if ended is None:
        raise UserError(
            f"{who}, as of {age} ago, which cannot be seen from {own.host}; "
            f"if that run has ended, remove {path}"
        )
    raise UserError(f"{who} for {age}; wait until that run ends, or give another folder")


def _give_back(path: Path, own: Owner) -> None:
    try:
        with path.open("r", encoding="utf-8", errors="replace") as file:
            _wait_for_turn(file)
            if _is_at(path, file) and _read(file) == own:
                path.unlink()
    except FileNotFoundError:  # somebody has removed it
        pass


def _wait_for_turn(file: IO) -> None:
    """Of all processes that look at the file, one at a time goes on, until it closes the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # a network's file system may have none: two that start within the
        if error.errno not in WITHOUT_FLOCK:  # same millisecond are not told apart there
            raise


def _is_at(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file: IO) -> Owner | None:
    """Who wrote it; None of a new file, or of one whose writer died before its end."""
    file.seek(0)
    try:
        owner = Owner(**json.loads(file.read(10_000)))
        datetime.now(UTC) - datetime.fromisoformat(owner.since)
    except (TypeError, ValueError, RecursionError):
        return None
    sound = type(owner.pid) is int and owner.pid > 0 and type(owner.restarts) is int
    return owner if sound else None
