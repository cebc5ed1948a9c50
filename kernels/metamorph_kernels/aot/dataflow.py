"""Register operands of warp-group products that a loop overwrites.

ptxas of CUDA 12.8 to 13.0 can give the registers of an operand that lives across a loop to another
operand that is made in the loop, without restoring the first. The assembly for it is right, and so
are registers, spills and shared memory; only what reaches the product is not.

A definition belongs to whatever reads it before the loop comes round. So a definition inside a loop
is a fault at a product of that loop if

- it reaches the product, but only round the loop: in its own round the product never reads it;
- something else does read it in its own round: it was made for that;
- and another definition reaches the product from before the loop: the operand that it replaces.

An operand that a software pipeline carries passes: what the first part of a round makes for the
next is read in the next round only. So does an operand that is loaded again before the product, or
made anew on some rounds, because the product then reads it in its own round.

Two faults are not seen. Where the compiler has rotated the loop, so that the product stands in the
next round before what overwrites its operand, that reads like a pipeline; and where the write kills
the only definition before the product in the same round, the product reads it as its own. So the
kernels do not lean on this check alone: no operand of theirs is to live across a loop.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

from metamorph_kernels.aot.control_flow import Flow, Loop
from metamorph_kernels.aot.disassembly import Instruction
from metamorph_kernels.aot.registers import PRODUCTS, Effects, product

UNDEFINED = -1  # the place of a definition that does not exist


class Definitions:
    """Where the registers of a kernel are written and read."""

    def __init__(self, code: Sequence[Instruction], flow: Flow, effects: Sequence[Effects]):
        self.code, self.flow = code, flow
        self.writers: dict[int, list[int]] = defaultdict(list)
        self.readers: dict[int, list[int]] = defaultdict(list)
        for block in flow.blocks:
            for place in block:
                for register in effects[place].writes:
                    self.writers[register].append(place)
                for register in effects[place].reads:
                    self.readers[register].append(place)

    def reaching(self, register: int, place: int) -> set[int]:
        """The writers that an instruction may find a register as they left it."""
        found: set[int] = set()
        block = self.flow.block_at[place]
        waiting = [(block, place)]
        seen: set[int] = set()
        while waiting:
            block, stop = waiting.pop()
            if self._written(register, self.flow.blocks[block].start, stop, found):
                continue
            if block == 0:
                found.add(UNDEFINED)
            for predecessor in self.flow.predecessors[block]:
                if predecessor not in seen:
                    seen.add(predecessor)
                    waiting.append((predecessor, self.flow.blocks[predecessor].stop))
        return found

    def read_in_its_round(self, register: int, definition: int, loop: Loop) -> set[int]:
        """Who reads a definition before the loop comes round to its header."""
        found: set[int] = set()
        seen: set[int] = set()
        waiting = [(self.flow.block_at[definition], definition + 1)]
        while waiting:
            block, first = waiting.pop()
            stop = self.flow.blocks[block].stop
            killer = self._next_killer(register, first, stop)
            found.update(_between(self.readers[register], first, min(killer + 1, stop)))
            if killer < stop:
                continue
            for successor in self.flow.successors[block]:
                inside = successor in loop.blocks and successor != loop.header
                if inside and successor not in seen:
                    seen.add(successor)
                    waiting.append((successor, self.flow.blocks[successor].start))
        return found

    def _written(self, register: int, first: int, stop: int, found: set[int]) -> bool:
        """Adds the last writers in a part of a block; True if none before it can be seen."""
        for place in reversed(_between(self.writers[register], first, stop)):
            found.add(place)
            if not self.code[place].guard:
                return True
        return False

    def _next_killer(self, register: int, first: int, stop: int) -> int:
        for place in _between(self.writers[register], first, stop):
            if not self.code[place].guard:
                return place
        return stop


def overwritten_operands(
    code: Sequence[Instruction], flow: Flow, effects: Sequence[Effects]
) -> list[str]:
    """A line for each product that may find a leftover in its register operand."""
    definitions = Definitions(code, flow, effects)
    lines = []
    for place in sorted(flow.block_at):
        if code[place].name in PRODUCTS:
            lines += next(_leftovers(definitions, place), ())
    return lines


def _leftovers(definitions: Definitions, place: int) -> Iterator[tuple[str]]:
    code, flow = definitions.code, definitions.flow
    for register in sorted(product(code[place]).operand):
        reaching = definitions.reaching(register, place)
        for loop in flow.loops_around(place):
            inside = {
                writer for writer in reaching - {UNDEFINED} if flow.block_at[writer] in loop.blocks
            }
            if inside == reaching:
                continue  # nothing comes from before the loop
            for writer in sorted(inside):
                readers = definitions.read_in_its_round(register, writer, loop)
                if readers and place not in readers:
                    before = max(reaching - inside)
                    origin = code[before] if before != UNDEFINED else "nothing"
                    yield (
                        f"{code[place]} reads R{register} of {origin}, "
                        f"which {code[writer]} overwrites in the loop",
                    )


def _between(places: list[int], first: int, stop: int) -> list[int]:
    return places[bisect_left(places, first) : bisect_left(places, stop)]
