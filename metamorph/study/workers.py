"""Processes that train the cells of a study side by side, a thread each."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from metamorph.errors import Halted

Item = TypeVar("Item")


class Workers:
    """A pool whose processes end with it, in the midst of their work if need be."""

    def __init__(self, pool: ProcessPoolExecutor):
        self.pool = pool

    def results(
        self, function: Callable[..., Any], calls: Iterable[tuple[Item, tuple]]
    ) -> Generator[tuple[Item, Any]]:
        """Each item of `calls` with what `function` made of its arguments, as they finish.

        Raises `Halted` if a process ended by itself.
        """
        waiting: dict[Future, Item] = {
            self.pool.submit(function, *arguments): item for item, arguments in calls
        }
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            raise Halted(
                "a process of the study ended at once or was killed, perhaps for lack of memory; "
                "go on with the same command, perhaps with fewer --jobs"
            ) from error


@contextmanager
def workers(jobs: int) -> Generator[Workers]:
    """So many processes, which have ended when the body has."""
    context = get_context("spawn")
    ending, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(ending,))
    try:
        yield Workers(pool)
    finally:
        held.close()  # which is also what happens where this process is killed
        pool.shutdown(cancel_futures=True)


def _start(ending: Connection) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # several bars on one terminal are none
    # The cores are shared, and sums come out the same for any number of jobs. Torch asks for this
    # when it is imported, which no process of the pool has done yet.
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    threading.Thread(target=_end_with, args=(ending,), daemon=True).start()


def _end_with(ending: Connection) -> None:
    """Nothing is ever sent: the pipe only ends."""
    ending.poll(None)
    os._exit(1)
