"""How FSDP would share out a model, for a plan: no weights, no GPUs, any number of processes.

The model stands on the meta device, and torch's fake process group plays the other processes: what
one process would hold is read off the sharded parameters themselves.
"""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from metamorph.errors import UserError


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered together. All numbers are elements.

    `local` is what the first process holds: FSDP cuts dimension 0 in equal pieces, so that the
    first one is never smaller than another, and what is sent is padded to it.
    """

    name: str
    whole: int
    whole_trained: int
    local: int
    local_trained: int
    is_sharded: bool
    is_root: bool = False  # gathered once for forward and backward
    whole_narrow: int = 0  # of which a byte each is gathered
    local_narrow: int = 0

    def gathered_bytes(self, width: int) -> int:
        """What the unit takes once gathered, where elements are `width` bytes wide but for those
        of 8 bits."""
        return width * self.whole - (width - 1) * self.whole_narrow

    def sent_bytes(self, width: int) -> int:
        """The share of it that the first process sends."""
        return width * self.local - (width - 1) * self.local_narrow


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in an optimizer step, in rings."""

    all_gather: float
    reduce_scatter: float
    all_reduce: float


@contextmanager
def fake_processes(world_size: int) -> Generator[None]:
    """A process group of `world_size` that this process is the first of; nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def mesh_shape(world_size: int, shard: int) -> tuple[int, int]:
    """(replicas, processes that share one copy) for `parallel.shard`; `UserError` if unfit."""
    shard = shard or world_size
    if world_size % shard:
        raise UserError(
            f"parallel.shard: groups of {shard} do not fit {world_size} processes; it needs a "
            f"divisor of that, or 0"
        )
    return world_size // shard, shard


def units(model: nn.Module, in_8_bits: Collection[str] = ()) -> list[Unit]:
    """The units of a model that `parallel.shard` was called on; or, if not, all of it as one.

    `in_8_bits`: the layers whose weights are gathered so, by name.
    """
    narrow = {model.get_parameter(f"{name}.weight") for name in in_8_bits}
    owners: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():  # inner modules come after outer ones
        if isinstance(module, FSDPModule) or module is model:
            owners |= dict.fromkeys(module.parameters(), (name, module))
    found = []
    for name, module in dict.fromkeys(owners.values()):
        own = [p for p, owner in owners.items() if owner == (name, module)]
        for sharded in (True, False):
            members = [p for p in own if isinstance(p, DTensor) == sharded]
            if members:
                found.append(_unit(name, members, narrow, sharded, module is model))
    return found


def _unit(
    name: str, members: list[nn.Parameter], narrow: set[nn.Parameter], sharded: bool, is_root: bool
) -> Unit:
    def local(parameter: nn.Parameter) -> int:
        return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()

    trained = [p for p in members if p.requires_grad]
    in_8_bits = [p for p in members if p in narrow]
    return Unit(
        name, sum(p.numel() for p in members), sum(p.numel() for p in trained),
        sum(map(local, members)), sum(map(local, trained)), sharded, is_root,
        sum(p.numel() for p in in_8_bits), sum(map(local, in_8_bits)),
    )  # fmt: skip


def traffic(
    units: list[Unit],
    replicas: int,
    shard: int,
    rows: int,
    gathered_bytes: int,
    reduced_bytes: int,
) -> Traffic:
    """What one process sends in a step of `rows` rows of its own.

    For each row, units are gathered for the forward and once more for the backward, the root only
    once; gradients are summed once a step, within the sharing group and then over replicas.
    Elements are `gathered_bytes`, or one, and `reduced_bytes` wide. In a ring of n, a process sends
    n - 1 pieces to gather or to reduce, and twice that of an n-th each to do both.
    """
    sharded = [unit for unit in units if unit.is_sharded]
    gathers = sum(unit.sent_bytes(gathered_bytes) * (1 if unit.is_root else 2) for unit in sharded)
    trained = sum(unit.local_trained for unit in sharded)
    return Traffic(
        all_gather=rows * (shard - 1) * gathers,
        reduce_scatter=(shard - 1) * trained * reduced_bytes,
        all_reduce=2 * (replicas - 1) / replicas * trained * reduced_bytes,
    )
