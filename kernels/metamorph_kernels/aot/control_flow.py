"""Basic blocks, what follows what, and the loops."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from metamorph_kernels.aot.disassembly import BYTES, Instruction

State = TypeVar("State")  # what a path brings to a place
ENDS = frozenset({"EXIT", "RET"})
BRANCHES = frozenset({"BRA"})
OUTSIDE = -1  # the place of an address that is no instruction's
DISPATCHES = frozenset({"BRX"})  # to one of the addresses that the instruction names
_INDIRECT = frozenset({"BRXU", "JMP", "JMX", "JMXU"})  # to an address in a register


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
        position = {block: number for number, block in enumerate(order)}
        for block in order:
            for header in self.successors[block]:
                if position[header] > position[block]:
                    continue
                if not self.stands_on_every_path(header, block):
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

    def stands_on_every_path(self, block: int, other: int) -> bool:
        """Does every path from the first instruction to block `other` go through `block`?"""
        return bool(self._dominators[other] >> block & 1)

    def places(self, loop: Loop) -> list[int]:
        """The instructions of a loop, in the order of their addresses."""
        return sorted(place for block in loop.blocks for place in self.blocks[block])

    def every_pass(self, loop: Loop) -> list[int]:
        """The instructions of a loop that no pass goes around."""
        ends = [block for block in self.predecessors[loop.header] if block in loop.blocks]
        return [
            place
            for place in self.places(loop)
            if all(self.stands_on_every_path(self.block_at[place], end) for end in ends)
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


def before_each(
    flow: Flow,
    first: State,
    after: Callable[[int, State], State],
    joined: Callable[[State, State], State],
) -> Iterator[tuple[int, State]]:
    """Each instruction that can be reached, with what holds before it on all paths.

    `first` holds before the first instruction, `after` says what the instruction at a place makes
    of it, `joined` what remains where two paths meet.
    """
    entering = {0: first}
    waiting = [0]
    while waiting:
        block = waiting.pop()
        state = entering[block]
        for place in flow.blocks[block]:
            state = after(place, state)
        for successor in flow.successors[block]:
            known = entering.get(successor, state)
            entered = joined(known, state)
            if successor not in entering or entered != known:
                entering[successor] = entered
                waiting.append(successor)
    for block, places in enumerate(flow.blocks):
        state = entering[block]
        for place in places:
            yield place, state
            state = after(place, state)


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
        unnamed = instruction.name in DISPATCHES and len(instruction.operands) == 1
        if unnamed or instruction.name in _INDIRECT or "COLLECTIVE" in instruction.modifiers:
            raise UnreadableFlow(f"{instruction} leads to a place that it does not name")
        if instruction.name in BRANCHES | DISPATCHES:
            is_branch = instruction.name in BRANCHES
            named = instruction.operands[-1:] if is_branch else instruction.operands[1:]
            targets = [at.get(int(address, 16), OUTSIDE) for address in named]
            if OUTSIDE in targets:
                raise UnreadableFlow(f"{instruction} leads out of the kernel")
            conditional |= is_branch and len(instruction.operands) > 1
            found.append((*targets, place + 1) if conditional else (*targets,))
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
