"""Warp-specialised machine code: what each partition of a block runs, and with which registers.

Warps behind those of the default partition wait in a loop, read in shared memory which partition is
theirs, and go there by an indirect branch. By setmaxnreg (USETMAXREG) warp groups hand each other
registers. A kernel that is not warp-specialised has the default partition alone.
"""

from collections.abc import Sequence

from metamorph_kernels.aot.control_flow import DISPATCHES, Flow, before_each
from metamorph_kernels.aot.disassembly import Instruction
from metamorph_kernels.aot.registers import PRODUCTS, Effects

TAKES = "USETMAXREG"
_SPECIALISED = PRODUCTS | {"UTMALDG"}  # what partitions are for


def partitions(code: Sequence[Instruction], flow: Flow) -> list[frozenset[int]]:
    """The blocks of each partition, the default one first: those that it alone can reach.

    The loop in which the other warps wait counts to the default partition.
    """
    entries = {
        successor
        for block, places in enumerate(flow.blocks)
        if code[places[-1]].name in DISPATCHES
        for successor in flow.successors[block]
    }
    found: dict[int, set[int]] = {entry: set() for entry in (0, *sorted(entries))}
    for block in range(len(flow.blocks)):
        owners = [entry for entry in entries if flow.stands_on_every_path(entry, block)]
        found[max(owners, default=0)].add(block)
    return [frozenset(blocks) for blocks in found.values()]


def held(code: Sequence[Instruction], flow: Flow, launched: int) -> dict[int, int]:
    """By place, the registers that a thread has there; all have `launched` at first.

    Empty where no warp group ever takes others.
    """
    if all(instruction.name != TAKES for instruction in code):
        return {}

    def after(place: int, registers: int) -> int:
        instruction = code[place]
        return int(instruction.operands[-1], 16) if instruction.name == TAKES else registers

    return dict(before_each(flow, launched, after, min))


def taken(code: Sequence[Instruction], held_at: dict[int, int]) -> tuple[int, ...]:
    """What threads hold where they issue products or have TMA load, the largest first."""
    return tuple(
        sorted({held_at[place] for place in held_at if code[place].name in _SPECIALISED})[::-1]
    )


def beyond_what_is_held(
    code: Sequence[Instruction], effects: Sequence[Effects], held_at: dict[int, int]
) -> list[str]:
    """A line for each instruction that names a register which its warps have handed on."""
    lines = []
    for place in sorted(held_at):
        highest = max(effects[place].reads | effects[place].writes, default=0)
        if highest >= held_at[place]:
            lines.append(f"{code[place]} uses R{highest}, but its warps hold {held_at[place]}")
    return lines
