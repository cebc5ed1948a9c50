"""What a shipped configuration must not have."""

from metamorph_kernels.aot.building import Resources
from metamorph_kernels.architectures import (
    MOST_SHARED_BYTES,
    RESERVED_SHARED_BYTES,
    SM_REGISTERS,
    WARP_SIZE,
    WARPS_OF_A_GROUP,
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
    found += _of_warp_groups(compilation, resources)
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
        SM_REGISTERS // (registers * resources.warps * WARP_SIZE),
    )


def _of_warp_groups(compilation: Compilation, resources: Resources) -> list[str]:
    """What its code does not do as a `Compilation` says of warp groups."""
    groups = compilation.warp_groups
    if groups is None:
        if resources.warps == compilation.num_warps:
            return []
        return [f"runs {resources.warps} warps, but nothing is said of its warp groups"]
    found = []
    if resources.warps != WARPS_OF_A_GROUP * len(groups.registers):
        found.append(f"runs {resources.warps} warps, not {len(groups.registers)} warp groups")
    if resources.registers != groups.launch_registers:
        found.append(f"is launched with {resources.registers} registers a thread")
    if resources.taken != tuple(sorted(set(groups.registers), reverse=True)):
        found.append(
            f"warp groups take {' and '.join(map(str, resources.taken)) or 'no'} registers"
        )
    if sum(groups.registers) > len(groups.registers) * groups.launch_registers:
        found.append("warp groups wait for more registers than the block is launched with")
    uses = resources.exponentials
    if groups.exponentials_in_flight and not (uses and all(each.in_flight for each in uses)):
        found.append("no exp2 of the innermost loop is issued under a product in flight")
    return found
