"""The processes of a run: who they are, and what they tell each other.

`torchrun` starts several of them and says so in the environment; a run without it is one process,
for which everything here is free. Numbers of the host travel between hosts (gloo), so that nobody
waits for a GPU to learn them.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metamorph.errors import UserError

TIMEOUT = timedelta(minutes=30)  # a slow file system may keep one process that long from the others


@contextmanager
def process_group(device: torch.device) -> Generator[None]:
    """The group of all processes that `torchrun` started, for as long as the body runs."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process among all, from 0."""
    return int(os.environ.get("RANK", 0))


def is_first() -> bool:
    """Whether this is the process that writes and prints for all."""
    return rank() == 0


def wait_for_all() -> None:
    """Returns once every process has come here."""
    totals([0])


def totals(numbers: list[int]) -> list[int]:
    """Each number summed over all processes. Numbers of the host: no device is asked."""
    if not dist.is_initialized():
        return numbers
    summed = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(summed)
    return summed.tolist()


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all get the same answer."""
    return totals([int(flag)])[0] > 0


def add_up(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place on its device, without waiting for it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list:
    """The picklable values of all processes in their order, in every process; `group` is one of
    all, if other threads of theirs may talk at the same time."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value, group=group)
    return values


def share(items: list) -> list:
    """The part of some work that this process does; together all do all of it."""
    return items[rank() :: world_size()] if dist.is_initialized() else items


def merged(parts: list[dict]) -> dict:
    """What all processes have, where each has other keys."""
    return {key: value for part in parts for key, value in part.items()}


def share_of(key: str, count: int, processes: int | None = None) -> int:
    """`count / processes`, which are those of this run if not given.

    Raises `UserError`, naming the key, if that is not whole.
    """
    processes = processes or world_size()
    share, rest = divmod(count, processes)
    if rest:
        raise UserError(f"{key}: {count} cannot be shared evenly by {processes} processes")
    return share
