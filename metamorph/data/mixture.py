"""Several sources mixed by weight.

Which part a sample comes from, and which sample of the part it is, follows from its index alone.
Each part is gone through in its own order, epoch after epoch.
"""

import numpy as np

from metamorph.data.conversation import Sample
from metamorph.data.order import mixed
from metamorph.data.sources import Source

# Samples after which every part has had its exact share. A prime: whatever number of lanes take
# turns, each lane then meets all parts in the same shares.
PERIOD = 10_007
STRIDE = 6_185  # PERIOD / golden ratio: any few neighbours spread evenly over the period


class Mixture:
    """The endless order of several sources. `weights`: their relative shares, above 0."""

    def __init__(self, parts: dict[str, Source], weights: list[float], seed: int):
        self.parts = parts
        self.sources = list(parts.values())
        self.counts = _whole_shares(weights)  # samples of each part in a period
        slots = (np.arange(PERIOD) * STRIDE + mixed(seed) % PERIOD) % PERIOD
        self.turns = np.searchsorted(np.cumsum(self.counts), slots, side="right")  # whose they are
        self.earlier = np.empty(PERIOD, np.int64)  # turns of the same part before each
        for part, count in enumerate(self.counts):
            self.earlier[self.turns == part] = np.arange(count)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def locate(self, index: int) -> tuple[int, int]:
        """The part that sample `index` comes from, and its index there."""
        period, turn = divmod(index, PERIOD)
        part = int(self.turns[turn])
        return part, period * self.counts[part] + int(self.earlier[turn])

    def sample(self, index: int) -> Sample:
        part, within = self.locate(index)
        return self.sources[part].sample(within)


def _whole_shares(weights: list[float]) -> list[int]:
    """`weights` as whole numbers that add up to `PERIOD`, each at least 1."""
    total = sum(weights)
    exact = [weight / total * PERIOD for weight in weights]
    counts = [max(int(share), 1) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda part: exact[part] - counts[part], reverse=True)
    for part in by_rest[: max(PERIOD - sum(counts), 0)]:
        counts[part] += 1
    counts[counts.index(max(counts))] += PERIOD - sum(counts)
    return counts


def parts_of(source: Source) -> dict[str, Source]:
    """The parts of a mixture, or the one source under the name `data`."""
    return source.parts if isinstance(source, Mixture) else {"data": source}
