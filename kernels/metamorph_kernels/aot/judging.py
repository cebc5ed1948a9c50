"""What a shipped configuration must not have."""

from metamorph_kernels.aot.building import Resources
from metamorph_kernels.architectures import (
    MOST_SHARED_BYTES,
    RESERVED_SHARED_BYTES,
    SM_REGISTERS,
    WARP_SIZE,
)
from metamorph_kernels.compilation import Compilation

REGISTER_UNIT = 8  # of a thread


def faults(
    compilation: Compilation, resources: Resources, architecture: str = "sm_90"
) -> list[str]:
    """What of `resources` a shipped configuration must not have; empty if all is well."""
    found = []
    if resources.stack:
        found.append(f"spills {resources.stack} bytes")
    if resources.shared > MOST_SHARED_BYTES[architecture]:
        found.append(f"needs {resources.shared} bytes of shared memory")
    elif fitting(compilation, resources, architecture) < compilation.residents:
        found.append(f"fewer than {compilation.residents} blocks fit an SM")
    if compilation.tensor_cores and not resources.wgmma:
        found.append("matrix product without wgmma")
    if resources.hazards:
        more = len(resources.hazards) - 1
        found.append(resources.hazards[0] + (f" (and {more} more)" if more else ""))
    return found


def fitting(compilation: Compilation, resources: Resources, architecture: str = "sm_90") -> int:
    """How many blocks fit one SM at a time."""
    registers = -(-resources.registers // REGISTER_UNIT) * REGISTER_UNIT
    shared = MOST_SHARED_BYTES[architecture] + RESERVED_SHARED_BYTES
    return min(
        shared // (resources.shared + RESERVED_SHARED_BYTES),
        SM_REGISTERS // (registers * compilation.num_warps * WARP_SIZE),
    )
