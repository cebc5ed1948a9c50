"""`python -m bench.runs.schedule`: how evenly the tiles of packed rows fall to the SMs of an H100.

A simulation: nothing is measured, and no GPU is needed. Where a cell has two figures the second is
that of the worst row.

Nobody has published how long the documents of such data are, one by one. `benchmark` is the
histogram that the benchmarks of attention draw their rows from. `mixture` has the six families of
the paper at their published shares, with 64 tokens an image and the text that plans of a run assume
(`metamorph.planning.assumed_samples`); in each family lengths are log-uniform from half to twice
that. `captions` is the data of the align stage, the shortest documents of all.
"""

from collections.abc import Callable, Sequence
from itertools import product
from statistics import fmean

import torch

from bench.harness.documents import IMAGE_TOKENS, KINDS, Kind, packed_row
from metamorph.planning.assumed_samples import FAMILIES, Family
from metamorph_kernels import Intervals
from metamorph_kernels.aot.schedule import (
    KERNELS,
    Schedule,
    Tiling,
    by_counter,
    early_first,
    late_first,
    longest_first,
    round_robin,
    tile_costs,
)
from metamorph_kernels.aot.speed import SMS

TOKENS = (2048, 4096, 8192, 16384, 32768)
ROWS = 8
CPU = torch.device("cpu")
ORDERS: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "early first": early_first,
    "late first": late_first,
    "longest first": longest_first,
}


def kinds_of(families: Sequence[Family]) -> tuple[Kind, ...]:
    """Families of samples as kinds of documents."""
    lengths = [family.length(IMAGE_TOKENS) for family in families]
    return tuple(
        Kind(family.samples, length // 2, 2 * length, family.images_read + family.images_drawn)
        for family, length in zip(families, lengths, strict=True)
    )


HISTOGRAMS = {
    "benchmark": KINDS,
    "mixture": kinds_of(FAMILIES["instruct"]),
    "captions": kinds_of(FAMILIES["align"]),
}


def rows(histogram: str, tokens: int) -> list[Intervals]:
    """Some rows of a histogram."""
    kinds = HISTOGRAMS[histogram]
    return [packed_row(tokens, "documents", seed, kinds).intervals(CPU) for seed in range(ROWS)]


def counted(tiling: Tiling, ordered: list[int]) -> Schedule:
    """A kernel whose producer runs ahead takes its tiles from a counter."""
    return by_counter(tile_costs(tiling, ordered, tiling.hidden_start_clocks))


def start_share(tiling: Tiling, steps: list[list[int]], start_clocks: float) -> float:
    """How much of their time SMs spend on the starts of tiles; `steps` of each tile of each row."""
    starts = sum(map(len, steps)) * start_clocks
    return starts / (starts + sum(map(sum, steps)) * tiling.step_clocks)


def cells(tiling: Tiling, steps: list[list[int]]) -> list[str]:
    """What a line says of a kernel, by the steps of each tile of each row."""
    idle = [
        [
            round_robin(tile_costs(tiling, late_first(row), tiling.hidden_start_clocks)).idle
            for row in steps
        ],
        *([counted(tiling, order(row)).idle for row in steps] for order in ORDERS.values()),
    ]
    starts = (tiling.start_clocks, tiling.hidden_start_clocks)
    tiles = len(steps[0])
    return [
        f"{tiles * tiling.copies / SMS:.1f}",
        f"{fmean(map(sum, steps)) / tiles:.1f}",
        " / ".join(f"{start_share(tiling, steps, clocks):.0%}" for clocks in starts),
        *(f"{fmean(shares):.1%} / {max(shares):.1%}" for shares in idle),
    ]


def table() -> list[str]:
    """Every kernel on rows of every histogram and length, as Markdown."""
    idle = ["in turn", *(f"counter, {name}" for name in ORDERS)]
    head = (
        "| documents | tokens | kernel | tiles an SM | steps a tile "
        "| starts: exposed / hidden | " + " | ".join(f"idle: {name}" for name in idle) + " |"
    )
    lines = [head, "|---|---:|---|" + "---:|" * (3 + len(idle))]
    for histogram, tokens in product(HISTOGRAMS, TOKENS):
        drawn = rows(histogram, tokens)
        for kernel, tiling in KERNELS.items():
            said = cells(tiling, [tiling.steps(row) for row in drawn])
            lines.append(f"| {' | '.join([histogram, f'{tokens}', kernel, *said])} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
