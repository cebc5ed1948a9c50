"""Registers that a warp-group product may still be using.

A product is asynchronous: it reads its register operand and its accumulators, and writes these,
until a wait. `gsb0` on a product closes a group; WARPGROUP.DEPBAR.LE gsb0, N waits until no more
than the N youngest closed groups are in flight. Products are in order among themselves, so one may
go on with the very accumulators of another.
"""

from collections.abc import Iterator, Sequence

from metamorph_kernels.aot.control_flow import Flow, before_each
from metamorph_kernels.aot.disassembly import Instruction
from metamorph_kernels.aot.registers import PRODUCTS, Effects, Product, product

OPEN = -1  # the age of a product whose group is not closed
OLDEST = 8  # more than any wait leaves in flight
LANDED = OLDEST + 1  # the age of one that was waited for
# By place of a product in flight, the fewest groups that any path has closed after its own.
Flight = dict[int, int]


def in_flight(code: Sequence[Instruction], flow: Flow) -> Iterator[tuple[int, Flight]]:
    """Each instruction that can be reached, with the products that may be in flight before it."""
    nothing: Flight = {}
    return before_each(
        flow, nothing, lambda place, flight: _after(code[place], place, flight), _joined
    )


def surely_under_a_product(code: Sequence[Instruction], flow: Flow) -> set[int]:
    """The places before which some product is in flight, whichever path leads to them.

    The youngest is the last that a wait ends, so its age is all that has to be followed.
    """

    def after(place: int, youngest: int) -> int:
        instruction = code[place]
        if instruction.name in PRODUCTS and not instruction.guard:
            return OPEN + ("gsb0" in instruction.operands)
        if is_wait(instruction) and youngest >= _left(instruction):
            return LANDED
        return youngest

    # `max` keeps the path that waited most.
    return {
        place for place, youngest in before_each(flow, LANDED, after, max) if youngest != LANDED
    }


def touched_in_flight(
    code: Sequence[Instruction], flow: Flow, effects: Sequence[Effects]
) -> list[str]:
    """A line for each instruction that touches what a product in flight uses."""
    products = {
        place: product(code[place]) for place in flow.block_at if code[place].name in PRODUCTS
    }
    lines = []
    for place, flight in in_flight(code, flow):
        for other in sorted(flight):
            words = _conflict(products.get(place), effects[place], products[other])
            if words:
                lines.append(f"{code[place]} {words} of {code[other]} before the wait for it")
                break
    return lines


def _conflict(this: Product | None, effects: Effects, flying: Product) -> str:
    """What an instruction does to the registers of a product in flight, or ""."""
    if effects.writes & flying.operand:
        return _words("writes the operand", effects.writes & flying.operand)
    if this is not None and this.accumulators == flying.accumulators:
        effects = Effects(frozenset(), this.operand)
    if effects.writes & flying.accumulators:
        return _words("writes the accumulators", effects.writes & flying.accumulators)
    if effects.reads & flying.accumulators:
        return _words("reads the accumulators", effects.reads & flying.accumulators)
    return ""


def _words(deed: str, registers: frozenset[int]) -> str:
    return f"{deed} R{min(registers)}"


def _after(instruction: Instruction, place: int, flight: Flight) -> Flight:
    if instruction.name in PRODUCTS:
        flight = {**flight, place: OPEN}
        if "gsb0" in instruction.operands:
            flight = {other: min(age + 1, OLDEST) for other, age in flight.items()}
    elif is_wait(instruction) and not instruction.guard:
        left = _left(instruction)
        flight = {other: age for other, age in flight.items() if age < left}
    return flight


def is_wait(instruction: Instruction) -> bool:
    """Does it wait for products?"""
    return instruction.name == "WARPGROUP" and "DEPBAR" in instruction.modifiers


def _left(wait: Instruction) -> int:
    """How many groups it leaves in flight."""
    return int(wait.operands[1], 16)


def _joined(one: Flight, other: Flight) -> Flight:
    return {
        place: min(one.get(place, OLDEST), other.get(place, OLDEST))
        for place in sorted(one.keys() | other.keys())
    }
