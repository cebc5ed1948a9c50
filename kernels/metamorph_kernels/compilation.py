"""One kernel in one configuration, as the ahead-of-time checker (`aot/`) compiles it."""

from dataclasses import dataclass
from typing import Any

from metamorph_kernels.architectures import MOST_SHARED_BYTES

HOPPER_ONLY = ("sm_90",)
EVERY_ARCHITECTURE = tuple(MOST_SHARED_BYTES)  # what kernels of rows are for


@dataclass(frozen=True)
class WarpGroups:
    """How a warp-specialised Gluon kernel shares out its block, and what its code must show.

    The block is launched with `launch_registers` a thread (`maxnreg`). Of these `registers` says
    how many a thread of each warp group then takes by setmaxnreg, the default partition first; a
    partition of fewer than four warps has a group for itself. `exponentials_in_flight`: every
    partition with products must have exp2 in its innermost loop under a product in flight; False
    where the design leaves nothing to overlap.
    """

    launch_registers: int
    registers: tuple[int, ...]
    exponentials_in_flight: bool


@dataclass(frozen=True)
class Compilation:
    """What `triton.compile` needs, and what the result may use.

    `arguments` maps each parameter of `kernel`, a `triton.JITFunction`, to its Triton type as a
    string ("*fp32", "i32", "tensordesc<bf16[64, 128]>") or, for a constexpr, to its value. Where
    `tensor_cores` is True the matrix products must use wgmma. `residents` blocks are to share an
    SM. `architectures` are those that it is compiled for: kernels with matrix products claim Hopper
    alone. A Gluon kernel has `warp_groups`; its `num_warps` are those of the default partition.
    """

    kernel: Any
    configuration: str
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    tensor_cores: bool = True
    residents: int = 1
    architectures: tuple[str, ...] = HOPPER_ONLY
    warp_groups: WarpGroups | None = None


def descriptor_type(element: str, *block: int) -> str:
    """The Triton type of a tensor descriptor, as `triton.compile` writes it."""
    return f"tensordesc<{element}{list(block)}>"


def gluon_descriptor_type(element: str, *block: int) -> str:
    """The same for a Gluon kernel, with Gluon's default layout of the block in shared memory."""
    import triton.language as tl
    from triton.experimental.gluon.language import NVMMASharedLayout

    layout = NVMMASharedLayout.get_default_for(list(block), tl.dtype(element))
    return f"tensordesc<{element}{list(block)},{layout!r}>"
