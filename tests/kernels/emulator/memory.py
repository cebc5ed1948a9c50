"""Shared memory that knows who wrote and read it, barriers in it, and global memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.kernels.emulator.machine import Actor, Clock, Group, Hazard, current


@dataclass
class Region:
    """One entry of an allocation, such as a slot of a ring, and its last accesses."""

    name: str
    data: Tensor
    writer: Actor | None = None
    written: int = 0  # when, by the writer's clock
    needs_fence: bool = False  # written by threads, and not yet to be seen by TMA and products
    barrier: "Barrier | None" = None  # that lies here
    readers: dict[int, tuple[Actor, int]] = field(default_factory=dict)  # since the last write

    def read(self, actor: Actor) -> Tensor:
        if self.writer is None:
            raise Hazard(f"{actor.name}: reads {self.name}, which nobody has written")
        self._ordered(actor, "reads", "the write by", self.writer, self.written)
        self._fenced(actor)
        self.readers[actor.number] = (actor, actor.clock[actor.number])
        return self.data

    def write(self, actor: Actor, data: Tensor) -> None:
        if self.writer is not None:
            self._ordered(actor, "writes", "the write by", self.writer, self.written)
        for reader, moment in self.readers.values():
            self._ordered(actor, "writes", "the read by", reader, moment)
        self._fenced(actor)
        if data.shape != self.data.shape or data.dtype != self.data.dtype:
            raise Hazard(
                f"{actor.name}: writes {data.dtype} {list(data.shape)} to {self.name}, which is "
                f"{self.data.dtype} {list(self.data.shape)}"
            )
        self.data = data.clone()
        self.writer, self.written = actor, actor.clock[actor.number]
        self.needs_fence = isinstance(actor, Group)
        self.readers = {}

    def _ordered(self, actor: Actor, does: str, deed: str, other: Actor, moment: int) -> None:
        if actor.clock.get(other.number, 0) < moment:
            raise Hazard(
                f"{actor.name}: {does} {self.name}, and nothing says that {deed} {other.name} is "
                f"over"
            )

    def _fenced(self, actor: Actor) -> None:
        if self.needs_fence and not isinstance(actor, Group):
            raise Hazard(
                f"{actor.name}: {self.name} was written by threads, without fence_async_shared"
            )


class Barrier:
    """An mbarrier: a phase is over when `count` have arrived and all expected bytes have come."""

    def __init__(self, name: str, count: int):
        self.name, self.count, self.pending = name, count, count
        self.bytes, self.phase = 0, 0
        self.arriving: Clock = {}
        self.passed: Clock = {}

    def arrive(self, clock: Clock, count: int = 1, copied: int = 0) -> None:
        """`count` arrivals, or that many bytes, of somebody who knows `clock`."""
        if count > self.pending:
            raise Hazard(f"{self.name}: {count} arrive where {self.pending} were awaited")
        self.pending -= count
        self.bytes -= copied
        for actor, moment in clock.items():
            self.arriving[actor] = max(moment, self.arriving.get(actor, 0))
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.count
            self.passed, self.arriving = {**self.passed, **self.arriving}, {}


class Shared:
    """A view of shared memory, [entries, ...] or of one entry: what Gluon calls a descriptor."""

    def __init__(self, regions: list[Region], view: Callable[[Tensor], Tensor] = lambda data: data):
        self.regions, self.view = regions, view

    @classmethod
    def allocate(cls, name: str, dtype: torch.dtype, shape: list[int]) -> "Shared":
        """[entries, ...], or one entry if there is but one dimension. All is NaN, or a number that
        nobody means."""
        entries, shape = (1, shape) if len(shape) == 1 else (shape[0], shape[1:])
        poison = math.nan if dtype.is_floating_point else -(2**30)
        data = torch.full(shape, poison, dtype=dtype)
        return cls([Region(f"{name}[{entry}]", data) for entry in range(entries)])

    @property
    def region(self) -> Region:
        [region] = self.regions
        return region

    @property
    def dtype(self) -> torch.dtype:
        return self.regions[0].data.dtype

    @property
    def shape(self) -> torch.Size:
        return self.view(self.region.data).shape

    @property
    def barrier(self) -> Barrier:
        if self.region.barrier is None:
            raise Hazard(f"{self.region.name} is used as a barrier and was not initialised")
        return self.region.barrier

    def index(self, entry: Any) -> "Shared":
        if not 0 <= int(entry) < len(self.regions):
            raise Hazard(f"{self.regions[0].name}: entry {int(entry)} of {len(self.regions)}")
        return Shared([self.regions[int(entry)]], self.view)

    def reshape(self, shape: list[int]) -> "Shared":
        return Shared(self.regions, lambda data: self.view(data).reshape(shape))

    def permute(self, order: list[int]) -> "Shared":
        return Shared(self.regions, lambda data: self.view(data).permute(order))

    def read(self, actor: Actor) -> Tensor:
        return self.view(self.region.read(actor))

    def load(self, layout: Any) -> Tensor:
        return self.read(current()).clone()

    def store(self, value: Tensor) -> None:
        data = self.region.data.clone()
        view = self.view(data)  # of the same numbers
        if view.shape != value.shape or view.dtype != value.dtype:
            raise Hazard(
                f"{self.region.name}: {value.dtype} {list(value.shape)} is stored to a view of "
                f"{view.dtype} {list(view.shape)}"
            )
        view.copy_(value)
        self.region.write(current(), data)


class Pointer:
    """Places in global memory: from the first number of a tensor to its last, and offsets [...]."""

    def __init__(self, tensor: Tensor, offsets: Any = 0):
        extent = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        self.memory = tensor.as_strided((extent,), (1,))
        self.offsets = torch.as_tensor(offsets)

    def __add__(self, offsets: Any) -> "Pointer":
        return Pointer(self.memory, self.offsets + offsets)

    def places(self, mask: Any) -> tuple[Tensor, Tensor]:
        """Offsets, 0 where not `mask`, and that mask, [...] each. Hazard past the end."""
        mask = torch.as_tensor(True if mask is None else mask)
        offsets, mask = torch.broadcast_tensors(self.offsets.long(), mask)
        outside = mask & ((offsets < 0) | (offsets >= len(self.memory)))
        if outside.any():
            raise Hazard(
                f"{current().name}: address {int(offsets[outside][0])} of "
                f"{len(self.memory)} numbers"
            )
        return offsets.where(mask, 0), mask


@dataclass(frozen=True)
class BlockType:
    shape: list[int]
    nbytes: int


class Descriptor:
    """What TMA knows of a tensor: read and written in blocks, zero and nothing outside of it."""

    def __init__(self, tensor: Tensor, block: list[int]):
        self.tensor = tensor
        self.dtype, self.layout = tensor.dtype, None
        self.block_type = BlockType(block, math.prod(block) * tensor.element_size())

    def _cut(self, coordinates: list[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where the block lies in the tensor, and which part of it does."""
        inside, part = [], []
        for first, size, limit in zip(
            map(int, coordinates), self.block_type.shape, self.tensor.shape, strict=True
        ):
            low, high = max(first, 0), max(min(first + size, limit), max(first, 0))
            inside.append(slice(low, high))
            part.append(slice(low - first, high - first))
        return tuple(inside), tuple(part)

    def read(self, coordinates: list[Any]) -> Tensor:
        inside, part = self._cut(coordinates)
        block = torch.zeros(self.block_type.shape, dtype=self.dtype)
        block[part] = self.tensor[inside]
        return block

    def write(self, coordinates: list[Any], block: Tensor) -> None:
        inside, part = self._cut(coordinates)
        self.tensor[inside] = block[part]
