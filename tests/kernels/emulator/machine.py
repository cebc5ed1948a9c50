"""Blocks of warp groups that run at the same time, in an order drawn from a seed.

A warp group is a thread; one at a time has the turn, and gives it up wherever another may overtake
it. Copies and products are under way until the machine picks them, at any later moment. Who may
rely on what is not left to chance: every group, copy and product has a vector clock (Lamport,
Mattern), barriers and waits pass clocks on, and shared memory asks of each access that what was
done there before *happened before* it. A race is found whichever way it goes.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

Clock = dict[int, int]  # what is known to have happened, by actor


class Hazard(AssertionError):
    """A kernel relies on what it has not waited for, or waits for what never comes."""


class _Abandoned(BaseException):
    """Ends the thread of a group when another one has failed."""


class Actor:
    """Somebody whose deeds have an order: a warp group, a copy or a product."""

    count = 0

    def __init__(self, name: str, clock: Clock):
        Actor.count += 1
        self.name, self.number = name, Actor.count
        self.clock = {**clock, self.number: 1}

    def know(self, clock: Clock) -> None:
        """What `clock` knows happened before all that follows."""
        for actor, moment in clock.items():
            if self.clock.get(actor, 0) < moment:
                self.clock[actor] = moment

    def published(self) -> Clock:
        """What has happened so far; what follows is later."""
        clock = dict(self.clock)
        self.clock[self.number] += 1
        return clock


class Operation(Actor):
    """A copy or a product under way: `execute` does it when the machine says so."""

    def __init__(self, name: str, issuer: "Group", execute: Callable[["Operation"], None]):
        super().__init__(name, issuer.published())
        self.execute, self.done = execute, False


class Group(Actor):
    """A warp group, or a block before it has any; `block` is the number of its program.

    `products` and `stores` are what it has under way, oldest first: products are executed in that
    order.
    """

    def __init__(self, name: str, machine: "Machine", block: int, clock: Clock):
        super().__init__(name, clock)
        self.machine, self.block = machine, block
        self.products: deque[Operation] = deque()
        self.stores: deque[Operation] = deque()
        self.waits_for, self.until = "", lambda: True
        self.finished = False
        self.failure: BaseException | None = None
        self._turn = threading.Semaphore(0)

    def start(self, function: Callable[[], Any]) -> None:
        """Be ready to run `function` when it is this group's turn."""

        def run() -> None:
            try:
                self._take_turn()
                with torch.no_grad():  # each thread asks for itself
                    function()
                self._end()
            except _Abandoned:
                pass
            except BaseException as failure:  # handed to whoever runs the machine
                self.failure = failure
            self.finished = True
            self.machine.turn_is_over.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _end(self) -> None:
        for name, under_way in (("products", self.products), ("stores", self.stores)):
            if under_way:
                raise Hazard(f"{self.name}: ends with {len(under_way)} {name} not waited for")

    def resume(self) -> None:
        """Have the turn until it is given up."""
        self._turn.release()
        self.machine.turn_is_over.acquire()

    def abandon(self) -> None:
        if not self.finished:
            self.machine.is_over = True
            self.resume()

    def give_up_turn(self, waits_for: str = "", until: Callable[[], bool] = lambda: True) -> None:
        """Others may go on first; and they must, as long as `until` is false."""
        self.waits_for, self.until = waits_for, until
        self.machine.turn_is_over.release()
        self._take_turn()

    def _take_turn(self) -> None:
        self._turn.acquire()
        if self.machine.is_over:
            raise _Abandoned
        self.machine.current = self


class Machine:
    """Runs the blocks of one launch to their end.

    Attributes:
        current: the group that has the turn.
        programs: how many blocks there are.
    """

    def __init__(self, seed: int, programs: int):
        self.random = random.Random(seed)
        self.programs = programs
        # How likely work under way is to go on before a group does: from lazy to eager.
        self.eagerness = self.random.choice((0.05, 0.3, 0.9))
        self.groups: list[Group] = []
        self.copies: list[Operation] = []  # under way, in no order
        self.regions: list[Any] = []  # of shared memory, of all blocks
        self.current: Group | None = None
        self.turn_is_over = threading.Semaphore(0)
        self.is_over = False

    def run(self, program: Callable[[], Any]) -> None:
        """Run `program` once in each block. Hazard for a race, a deadlock or a misused barrier."""
        for block in range(self.programs):
            self.fork(f"block {block}", block, {}, program)
        try:
            while any(not group.finished for group in self.groups):
                self._advance()
        finally:
            for group in self.groups:
                group.abandon()
        if self.copies:
            raise Hazard(f"the kernel ends with {self.copies[0].name} under way")

    def fork(self, name: str, block: int, clock: Clock, function: Callable[[], Any]) -> Group:
        """Another group, which begins with what `clock` knows."""
        group = Group(name, self, block, clock)
        self.groups.append(group)
        group.start(function)
        return group

    def _advance(self) -> None:
        running = [group for group in self.groups if not group.finished]
        ready = [group for group in running if group.until()]
        under_way = self.copies + self._next_in_order()
        if not ready and not under_way:
            waiting = "; ".join(f"{group.name} waits for {group.waits_for}" for group in running)
            raise Hazard(f"deadlock: {waiting}")
        if under_way and (not ready or self.random.random() < self.eagerness):
            operation = self.random.choice(under_way)
            operation.execute(operation)
            operation.done = True
            if operation in self.copies:
                self.copies.remove(operation)
            return
        group = self.random.choice(ready)
        group.resume()
        if group.failure is not None:
            raise group.failure

    def _next_in_order(self) -> list[Operation]:
        oldest = []
        for group in self.groups:
            for under_way in (group.products, group.stores):
                oldest += [operation for operation in under_way if not operation.done][:1]
        return oldest


_machine: Machine | None = None


def launch(
    kernel: Callable,
    arguments: Sequence[Any],
    *,
    programs: int = 1,
    seed: int = 0,
    **constants: Any,
) -> None:
    """Run an emulated kernel (see `emulated`) as `programs` blocks, interleaved by `seed`."""
    global _machine
    _machine = Machine(seed, programs)
    try:
        _machine.run(lambda: kernel(*arguments, **constants))
    finally:
        _machine = None


def current() -> Group:
    """The group that runs."""
    assert _machine is not None and _machine.current is not None
    return _machine.current


def wait_for_oldest(under_way: deque[Operation], left: int, name: str) -> None:
    """Wait until no more than the `left` youngest are under way; only the others are then known."""
    group = current()
    waited_for = list(under_way)[: max(0, len(under_way) - left)]
    group.give_up_turn(name, lambda: all(operation.done for operation in waited_for))
    for operation in waited_for:
        group.know(operation.published())
        under_way.popleft()
