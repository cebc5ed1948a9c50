"""Samples that other processes prepare before they are asked for."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, Generic, TypeVar

import torch

from metamorph.errors import UserError

AHEAD = 8  # samples that a process prepares ahead
Prepared = TypeVar("Prepared")


class Ahead(Generic[Prepared]):
    """What `prepare` makes of indices, for readers that take every `stride`-th.

    `prepare` is a pure function of the index that can be pickled; what it returns should hold
    arrays in place of tensors, which would keep an open file each. The processes hold no position:
    what is prepared ahead and never asked for is dropped.
    """

    def __init__(self, prepare: Callable[[int], Prepared], workers: int, stride: int, readers: int):
        self.stride = stride
        self.depth = -(-AHEAD * workers // readers)
        self.pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start, initargs=(prepare,)
        )
        self.waiting: dict[int, deque[tuple[int, Future]]] = {}  # by reader

    def take(self, index: int) -> Prepared:
        """As `prepare`, also in what it raises; waits until it is there."""
        queue = self.waiting.setdefault(index % self.stride, deque())
        if queue and queue[0][0] != index:
            for _, future in queue:
                future.cancel()
            queue.clear()
        following = queue[-1][0] + self.stride if queue else index
        try:
            while len(queue) <= self.depth:
                queue.append((following, self.pool.submit(_prepare_one, following)))
                following += self.stride
            return queue.popleft()[1].result()
        except BrokenProcessPool as error:
            raise UserError(
                "data.workers: a process that prepares samples ended at once or was killed, "
                "perhaps for lack of memory; try fewer"
            ) from error

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


_prepare: Callable[[int], Any]  # of a process that prepares


def _start(prepare: Callable[[int], Any]) -> None:
    global _prepare
    _prepare = prepare
    torch.set_num_threads(1)  # processes share the cores
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the run saves first, and then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():  # a pool's processes would outlive one that was killed
        parent.join()
        os._exit(1)


def _prepare_one(index: int) -> Any:
    return _prepare(index)
