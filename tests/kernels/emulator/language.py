"""`triton.experimental.gluon.language` on torch tensors: one value for all threads of a group.

Layouts are taken and ignored: the compiler checks them. Scalars are tensors of no dimension, int32
where they would be, so that what overflows on a GPU overflows here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.kernels.emulator.machine import current
from tests.kernels.emulator.memory import Pointer, Shared

int32, int64 = torch.int32, torch.int64
float16, bfloat16, float32 = torch.float16, torch.bfloat16, torch.float32


class Layout:
    """Any layout."""

    def __init__(self, *arguments: Any, **keywords: Any):
        pass


NVMMADistributedLayout = NVMMASharedLayout = SwizzledSharedLayout = Layout
BlockedLayout = SliceLayout = DotOperandLayout = Layout


class constexpr:
    """A value that is known when a kernel is compiled; here all are."""

    def __new__(cls, value: Any) -> Any:
        return value


static_range = range


def static_assert(condition: bool, message: str = "") -> None:
    assert condition, message


def program_id(axis: int) -> Tensor:
    assert axis == 0
    return torch.tensor(current().block, dtype=int32)


def num_programs(axis: int) -> Tensor:
    assert axis == 0
    return torch.tensor(current().machine.programs, dtype=int32)


def cdiv(numerator: Any, denominator: Any) -> Any:
    return (numerator + denominator - 1) // denominator


def arange(start: int, stop: int, layout: Any = None) -> Tensor:
    return torch.arange(start, stop, dtype=int32)


def full(shape: list[int], value: Any, dtype: torch.dtype, layout: Any = None) -> Tensor:
    return torch.full(shape, value.item() if isinstance(value, Tensor) else value, dtype=dtype)


def zeros(shape: list[int], dtype: torch.dtype, layout: Any = None) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def convert_layout(value: Tensor, layout: Any) -> Tensor:
    return value


def to_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=_dtype_of(value))


def _dtype_of(value: Any) -> torch.dtype:
    return float32 if isinstance(value, float) else torch.bool if isinstance(value, bool) else int32


def where(condition: Any, yes: Any, no: Any) -> Tensor:
    return torch.where(to_tensor(condition), yes, no)


def minimum(one: Any, other: Any) -> Tensor:
    return torch.minimum(*_alike(one, other))


def maximum(one: Any, other: Any) -> Tensor:
    """Of a number and NaN it is the number, as on a GPU."""
    one, other = _alike(one, other)
    return torch.fmax(one, other) if one.is_floating_point() else torch.maximum(one, other)


def _alike(one: Any, other: Any) -> tuple[Tensor, Tensor]:
    dtype = next((value.dtype for value in (one, other) if isinstance(value, Tensor)), None)
    return tuple(torch.as_tensor(value, dtype=dtype) for value in (one, other))


def max(value: Tensor, axis: int) -> Tensor:  # Gluon's name
    """Of numbers and NaN it is that of the numbers, as on a GPU."""
    if value.is_floating_point():
        value = value.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return value.amax(axis)


def sum(value: Tensor, axis: int) -> Tensor:  # Gluon's name
    return value.sum(axis, dtype=value.dtype)


exp2, log2 = torch.exp2, torch.log2


def inline_asm_elementwise(asm: str, constraints: str, args: list[Tensor], **_: Any) -> Tensor:
    """What the kernels use it for: the value itself, at its place in the instructions."""
    return args[0]


def load(pointer: Pointer, mask: Any = None, other: Any = 0) -> Tensor:
    offsets, mask = pointer.places(mask)
    return torch.where(mask, pointer.memory[offsets], other).to(pointer.memory.dtype)


def store(pointer: Pointer, value: Any, mask: Any = None) -> None:
    offsets, mask = pointer.places(mask)
    value = torch.as_tensor(value).to(pointer.memory.dtype).expand(offsets.shape)
    pointer.memory[offsets[mask]] = value[mask]


def atomic_add(pointer: Pointer, value: Any, mask: Any = None, sem: str | None = None) -> Tensor:
    """Of one number; returns what was there."""
    [place] = pointer.offsets.flatten().tolist()
    before = pointer.memory[place].clone()
    pointer.memory[place] += value
    return before


def allocate_shared_memory(dtype: torch.dtype, shape: list[int], layout: Any) -> Shared:
    group = current()
    shared = Shared.allocate(f"{group.name}: {dtype} {list(shape)}", dtype, list(shape))
    group.machine.regions += shared.regions
    return shared


def warp_specialize(
    parts: list[tuple[Callable, tuple]], worker_num_warps: list[int], worker_num_regs: list[int]
) -> None:
    """All parts at the same time, as groups of this block."""
    assert len(parts) == len(worker_num_warps) + 1
    block = current()
    groups = [
        block.machine.fork(
            f"{block.name} {part.__name__} {number}",
            block.block,
            block.published(),
            lambda part=part, arguments=arguments: part(*arguments),
        )
        for number, (part, arguments) in enumerate(parts)
    ]
    block.give_up_turn("its groups", lambda: all(group.finished for group in groups))
    for group in groups:
        block.know(group.published())
