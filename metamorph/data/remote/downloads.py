"""Reading from elsewhere with patience: again after a pause, but never for ever."""

import time
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

from metamorph.disk import no_place
from metamorph.errors import Halted, UserError, in_words

T = TypeVar("T")
ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds; each further one is twice as long
SILENCE = 60.0  # seconds without a byte, after which an attempt is given up
PIECE = 2**22  # bytes
# What another attempt would not change.
FINAL = (FileNotFoundError, PermissionError, ImportError, UserError)


def patiently(what: str, work: Callable[[], T]) -> T:
    """What `work` returns, tried up to `ATTEMPTS` times.

    Raises one of `FINAL` at once, and `Halted` after the last attempt: nothing is wrong with the
    run, and it can go on from its checkpoint once the other side answers.
    """
    problem: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            return work()
        except FINAL:
            raise
        except Exception as error:  # every store has errors of its own
            problem = error
            if no_place(error):
                break
    assert problem is not None
    raise Halted(f"{what} cannot be read: {in_words(problem)}") from problem


def pieces(filesystem: Any, path: str) -> Iterator[bytes]:
    """The bytes of a file of an fsspec file system, in order.

    Read in a thread of its own, for not every store has a timeout: raises `TimeoutError` if no
    byte comes for `SILENCE`.
    """
    ready: Queue[bytes | BaseException] = Queue(2)
    left = Event()

    def put(item: bytes | BaseException) -> None:
        while not left.is_set():
            try:
                return ready.put(item, timeout=1)
            except Full:
                continue

    def read() -> None:
        try:
            with filesystem.open(path, "rb", block_size=PIECE) as file:
                while (piece := file.read(PIECE)) and not left.is_set():
                    put(piece)
            put(b"")
        except BaseException as error:  # it is raised where the bytes are waited for
            put(error)

    Thread(target=read, daemon=True).start()
    try:
        while True:
            try:
                item = ready.get(timeout=SILENCE)
            except Empty:
                raise TimeoutError(f"nothing came for {SILENCE:g} seconds") from None
            if isinstance(item, BaseException):
                raise item
            if not item:
                return
            yield item
    finally:
        left.set()
