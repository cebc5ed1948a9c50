"""Basic blocks, what follows what, and the loops."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from metamorph_kernels.aot.disassembly import BYTES, Instruction

ENDS = frozenset({"EXIT", "RET"})
BRANCHES = frozenset({"BRA"})
_INDIRECT = frozenset({"BRX", "BRXU", "JMP", "JMX", "JMXU"})  # to an address in a register


class UnreadableFlow(ValueError):
    """Code of which it is not known what follows what."""


@dataclass(frozen=True)
class Loop:
    """A natural loop: the block that every round enters it by, and all its blocks."""

    header: int
    blocks: frozenset[int]


@dataclass(frozen=True)
class Flow:
    """The blocks that can be reached from the first instruction; `blocks[0]` begins with it.

    A call is followed by what stands behind it: the functions that kernels of rows call return.
    Kernels with matrix products may call none, because `registers.py` lists no CALL. BSYNC falls
    through because the place where its BSSY has threads meet stands behind it, which is checked.
    """

    blocks: tuple[range, ...]
    successors: tuple[tuple[int, ...], ...]

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.blocks]
        for block, following in enumerate(self.successors):
            for successor in following:
                found[successor].append(block)
        return tuple(map(tuple, found))

    @cached_property
    def block_at(self) -> dict[int, int]:
        """By place of an instruction, its block."""
        return {place: number for number, block in enumerate(self.blocks) for place in block}

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """All loops, inner ones before those around them."""
        bodies: dict[int, set[int]] = {}
        order = self._order
        dominators = self._dominators
        position = {block: number for number, block in enumerate(order)}
        for block in order:
            for header in self.successors[block]:
                if position[header] > position[block]:
                    continue
                if not dominators[block] >> header & 1:
                    raise UnreadableFlow("a loop is entered at two places")
                body = bodies.setdefault(header, {header})
                waiting = [block]
                while waiting:
                    member = waiting.pop()
                    if member not in body:
                        body.add(member)
                        waiting.extend(self.predecessors[member])
        loops = [Loop(header, frozenset(body)) for header, body in bodies.items()]
        return tuple(sorted(loops, key=lambda loop: len(loop.blocks)))

    def loops_around(self, place: int) -> list[Loop]:
        """The loops that hold an instruction, innermost first."""
        block = self.block_at[place]
        return [loop for loop in self.loops if block in loop.blocks]

    def places(self, loop: Loop) -> list[int]:
        """The instructions of a loop, in the order of their addresses."""
        return sorted(place for block in loop.blocks for place in self.blocks[block])

    def every_pass(self, loop: Loop) -> list[int]:
        """The instructions of a loop that no pass goes around."""
        ends = [block for block in self.predecessors[loop.header] if block in loop.blocks]
        return [
            place
            for place in self.places(loop)
            if all(self._dominators[end] >> self.block_at[place] & 1 for end in ends)
        ]

    @cached_property
    def _order(self) -> list[int]:
        """The blocks in reverse postorder: but for loops, after all that lead to them."""
        order: list[int] = []
        seen = {0}
        stack = [(0, iter(self.successors[0]))]
        while stack:
            block, following = stack[-1]
            successor = next((other for other in following if other not in seen), None)
            if successor is None:
                order.append(block)
                stack.pop()
            else:
                seen.add(successor)
                stack.append((successor, iter(self.successors[successor])))
        return order[::-1]

    @cached_property
    def _dominators(self) -> dict[int, int]:
        """By block, those that stand on every path to it, as bits."""
        order = self._order
        everything = (1 << len(self.blocks)) - 1
        found = dict.fromkeys(order, everything)
        found[0] = 1
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                common = everything
                for predecessor in self.predecessors[block]:
                    common &= found[predecessor]
                common |= 1 << block
                if common != found[block]:
                    found[block], changed = common, True
        return found


def flow_of(code: Sequence[Instruction]) -> Flow:
    """The flow of a kernel; UnreadableFlow where it cannot be known."""
    following = _following(code)
    reached = _reached(following)
    starts = {0}
    for place in reached:
        if following[place] != (place + 1,):
            starts.update(following[place])
            starts.add(place + 1)
    blocks = []
    for first in sorted(starts & reached):
        stop = first + 1
        while stop not in starts and stop in reached:
            stop += 1
        blocks.append(range(first, stop))
    number = {block.start: place for place, block in enumerate(blocks)}
    return Flow(
        tuple(blocks),
        tuple(tuple(number[place] for place in following[block[-1]]) for block in blocks),
    )


def _following(code: Sequence[Instruction]) -> list[tuple[int, ...]]:
    """By place, the places that can come next."""
    at = {instruction.address: place for place, instruction in enumerate(code)}
    meeting: dict[str, set[int]] = {}
    for instruction in code:
        if instruction.name == "BSSY":
            barrier, target = instruction.operands[0], int(instruction.operands[-1], 16)
            meeting.setdefault(barrier, set()).add(target)
    found: list[tuple[int, ...]] = []
    for place, instruction in enumerate(code):
        conditional = bool(instruction.guard)
        if instruction.name in _INDIRECT or "COLLECTIVE" in instruction.modifiers:
            raise UnreadableFlow(f"{instruction} leads to a place that it does not name")
        if instruction.name in BRANCHES:
            target = at.get(int(instruction.operands[-1], 16))
            if target is None:
                raise UnreadableFlow(f"{instruction} leads out of the kernel")
            conditional |= len(instruction.operands) > 1
            found.append((target, place + 1) if conditional else (target,))
        elif instruction.name in ENDS:
            found.append((place + 1,) if conditional else ())
        else:
            if instruction.name == "BSYNC":
                behind = instruction.address + BYTES
                if behind not in meeting.get(instruction.operands[0], set()):
                    raise UnreadableFlow(f"{instruction} does not stand before where threads meet")
            found.append((place + 1,))
    return found


def _reached(following: list[tuple[int, ...]]) -> set[int]:
    reached = {0}
    waiting = [0]
    while waiting:
        for place in following[waiting.pop()]:
            if place == len(following):
                raise UnreadableFlow("the code ends without EXIT")
            if place not in reached:
                reached.add(place)
                waiting.append(place)
    return reached
