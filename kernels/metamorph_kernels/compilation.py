"""One kernel in one configuration, as the ahead-of-time checker (`aot/`) compiles it."""

from dataclasses import dataclass
from typing import Any

from metamorph_kernels.architectures import MOST_SHARED_BYTES

HOPPER_ONLY = ("sm_90",)
EVERY_ARCHITECTURE = tuple(MOST_SHARED_BYTES)  # what kernels of rows are for


@dataclass(frozen=True)
class Compilation:
    """What `triton.compile` needs, and what the result may use.

    `arguments` maps each parameter of `kernel`, a `triton.JITFunction`, to its Triton type as a
    string ("*fp32", "i32", "tensordesc<bf16[64, 128]>") or, for a constexpr, to its value. Where
    `tensor_cores` is True the matrix products must use wgmma. `residents` blocks are to share an
    SM. `architectures` are those that it is compiled for: kernels with matrix products claim Hopper
    alone.
    """

    kernel: Any
    configuration: str
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    tensor_cores: bool = True
    residents: int = 1
    architectures: tuple[str, ...] = HOPPER_ONLY


def descriptor_type(element: str, *block: int) -> str:
    """The Triton type of a tensor descriptor, as `triton.compile` writes it."""
    return f"tensordesc<{element}{list(block)}>"
