"""The processes of a run: who they are, and what they tell each other.

`torchrun` starts several of them and says so in the environment; a run without it is one process,
for which everything here is free. Numbers of the host travel between hosts (gloo), so that nobody
waits for a GPU to learn them.
"""

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metamorph.errors import Halted, UserError

TORCHRUN = "start several processes with torchrun, or one without such variables"
# What gloo and NCCL say when the other end is gone.
LOST = re.compile("Connection (closed|reset) by peer|Broken pipe|remote process exited", re.I)
TIMEOUT = timedelta(minutes=30)  # a slow file system may keep one process that long from the others


def check_processes() -> None:
    """Raises `UserError` unless the environment says either nothing of other processes or all that
    is needed to find them, as `torchrun` does."""
    if "WORLD_SIZE" not in os.environ:
        if rank() > 0:
            raise UserError(f"RANK is {rank()} but WORLD_SIZE is not set; {TORCHRUN}")
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} not set; {TORCHRUN}"
        )
    _from_environment("LOCAL_RANK", 0, world_size() - 1)
    _from_environment("MASTER_PORT", 1, 65535)
    _from_environment("RANK", 0, world_size() - 1)


@contextmanager
def process_group(device: torch.device) -> Generator[None]:
    """The group of all processes that `torchrun` started, for as long as the body runs.

    Raises `UserError` if they do not find each other, `Halted` if one of the others has died.
    """
    check_processes()
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        raise UserError(f"the processes do not find each other at {place}: {reason}") from error
    try:
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise Halted(
            "another process of this run has died, so this one ends too; "
            "go on from the last checkpoint with the same command and --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return _from_environment("WORLD_SIZE", 1)


def rank() -> int:
    """This process among all, from 0."""
    return _from_environment("RANK", 0)


def _from_environment(name: str, least: int, most: int | None = None) -> int:
    """A number that `torchrun` sets; without it, the least."""
    text = os.environ.get(name, str(least))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not least <= number <= (sys.maxsize if most is None else most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} is {text!r}, expected a whole number {limits}; {TORCHRUN}")
    return number


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
