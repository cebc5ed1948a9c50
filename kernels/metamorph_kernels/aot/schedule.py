"""A model of how the tiles of a persistent kernel fall to the SMs. Nothing was measured.

One program runs on each SM and takes tile after tile. Tiles of packed documents are of very
different length, so some SMs end before others: that is idle time. `python -m bench.runs.schedule`
prints it for rows of documents.

Clocks of a step are those of its products, which bind a kernel whose softmax is hidden behind them
(`metamorph_kernels.aot.speed`).
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from metamorph_kernels.aot.speed import FLOPS, ISSUED, MUFU_LANES, SMS
from metamorph_kernels.architectures import WARPS_OF_A_GROUP
from metamorph_kernels.intervals import Intervals

# Assumed: a load that waits for memory, and a tile by TMA from its request to its barrier.
LOAD_CLOCKS, TMA_CLOCKS = 600, 1000
# Instructions of a warp and tile beside its steps, in the machine code of the Gluon forward.
OUTSIDE_STEPS = 560
GROUP_ROWS = 64


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts a row into tiles, and a tile into steps, with the clocks of an SM.

    A tile is `tokens` tokens of one side, queries or, with `by_keys`, keys. A step is one block of
    `block` tokens of the other side; with `repeats`, a tile goes over these for so many heads.
    For each tile of a row there are `copies`, one for each block of heads that shares it.
    """

    tokens: int
    block: int
    copies: int
    products: int  # of a step, each of rows x block x head_dim
    repeats: int = 1
    by_keys: bool = False
    rows: int = 2 * GROUP_ROWS
    head_dim: int = 128

    @property
    def step_clocks(self) -> float:
        """Of one step of both consumer groups."""
        flops = 2 * self.rows * self.block * self.head_dim * self.products
        return flops / FLOPS[False]

    @property
    def hidden_start_clocks(self) -> float:
        """What a tile costs beside its steps where the producer runs ahead into it.

        Left over is one group's first softmax, under which no product of its own flies.
        """
        return GROUP_ROWS * self.block / MUFU_LANES

    @property
    def start_clocks(self) -> float:
        """The same where nothing runs ahead.

        Its bounds are loaded, then its first operands; its result is written before the next tile
        may use the place.
        """
        outside = WARPS_OF_A_GROUP * OUTSIDE_STEPS / ISSUED
        return LOAD_CLOCKS + 2 * TMA_CLOCKS + outside + self.hidden_start_clocks

    def steps(self, intervals: Intervals) -> list[int]:
        """Of each tile of a row, the first tokens first."""
        start, end = intervals.row_start.long(), intervals.row_end.long()
        if self.by_keys:
            start, end = intervals.col_start.long(), intervals.col_end.long()
        first = torch.arange(0, len(start), self.tokens)
        last = (first + self.tokens).clamp(max=len(start)) - 1
        seen = end[last] - start[first]
        return (self.repeats * (-(-seen // self.block))).tolist()


# Llama 3.1 8B: 32 query heads on 8 key heads of 128. Four heads of a group share a tile of queries.
KERNELS = {
    "forward": Tiling(32, 128, copies=8, products=2),
    "query gradient": Tiling(32, 64, copies=8, products=3),
    "key value gradient": Tiling(128, 64, copies=8, products=4, repeats=4, by_keys=True),
}


@dataclass(frozen=True)
class Schedule:
    """The clocks that each SM is busy, without a gap from the launch on."""

    busy: tuple[float, ...]

    @property
    def makespan(self) -> float:
        """Clocks until the last SM is done."""
        return max(self.busy)

    @property
    def idle(self) -> float:
        """The share of all SMs' time until then in which they have no tile."""
        return 1 - sum(self.busy) / (len(self.busy) * self.makespan)


def round_robin(costs: Sequence[float], programs: int = SMS) -> Schedule:
    """Tile i goes to program i modulo `programs`."""
    return Schedule(tuple(sum(costs[program::programs]) for program in range(programs)))


def by_counter(costs: Iterable[float], programs: int = SMS) -> Schedule:
    """Each program takes the next tile, in the order of `costs`, when it is done with its own.

    A producer asks for it some steps before that. So do all others, which leaves the order of
    those that ask as it is.
    """
    busy = [(0.0, program) for program in range(programs)]
    for cost in costs:
        clocks, program = busy[0]
        heapq.heapreplace(busy, (clocks + cost, program))
    return Schedule(tuple(clocks for clocks, _ in busy))


def late_first(steps: Sequence[int]) -> list[int]:
    """From the end of the row on: its first tiles, which see few keys, are left for the end."""
    return list(reversed(steps))


def early_first(steps: Sequence[int]) -> list[int]:
    """From the start of the row on: for tiles of keys what `late_first` is for tiles of queries."""
    return list(steps)


def longest_first(steps: Sequence[int]) -> list[int]:
    """Sorted, for which a kernel needs the order of the tiles in memory."""
    return sorted(steps, reverse=True)


def tile_costs(tiling: Tiling, ordered: Sequence[int], start_clocks: float) -> list[float]:
    """Clocks of every tile, heads innermost, of steps in the order of the counter."""
    costs = [steps * tiling.step_clocks + start_clocks for steps in ordered]
    return [cost for cost in costs for _ in range(tiling.copies)]
