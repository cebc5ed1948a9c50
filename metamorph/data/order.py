"""The order of samples: a permutation for every epoch, computed one index at a time.

Nothing is stored however many samples there are: a generalised Feistel network permutes a grid of
just more than `length` cells; an index that lands outside is permuted again until it lies inside
(cycle walking).
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from math import isqrt

ROUNDS = 8
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio


def mix(value: int) -> int:
    """A whole number to 64 well-mixed bits (the finaliser of SplitMix64)."""
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def mixed(*values: int) -> int:
    """64 bits that depend on all `values` and on their order."""
    state = 0
    for value in values:
        state = mix(state + GOLDEN + mix(value + GOLDEN))
    return state


@lru_cache(maxsize=256)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(mixed(seed, epoch, number) for number in range(ROUNDS))


def shuffled(index: int, length: int, seed: int, epoch: int) -> int:
    """Where `index` of an epoch lies in the data: for each (seed, epoch) a permutation.

    `0 <= index < length`. Constant time and memory.
    """
    rows = isqrt(length - 1) + 1
    columns = -(-length // rows)
    keys = _keys(seed, epoch)
    place = index
    while True:
        row, column = divmod(place, columns)
        for number in range(0, ROUNDS, 2):
            row = (row + mix(column + keys[number])) % rows
            column = (column + mix(row + keys[number + 1])) % columns
        place = row * columns + column
        if place < length:
            return place


class BlockOrder:
    """An order that keeps blocks together: blocks are shuffled, and samples within each.

    For files that are read a block at a time. `sizes`: samples of each block.
    """

    def __init__(self, sizes: list[int], seed: int):
        self.sizes, self.seed = sizes, seed
        self.starts = [0, *accumulate(sizes)]
        self._epoch, self._blocks, self._ends = -1, [], []

    def place(self, index: int, epoch: int) -> int:
        """As `shuffled`, for `0 <= index < sum(sizes)`."""
        if epoch != self._epoch:
            count = len(self.sizes)
            self._blocks = [shuffled(i, count, self.seed, epoch) for i in range(count)]
            self._ends = [*accumulate(self.sizes[block] for block in self._blocks)]
            self._epoch = epoch
        turn = bisect_right(self._ends, index)
        block = self._blocks[turn]
        size = self.sizes[block]
        within = index - (self._ends[turn] - size)
        return self.starts[block] + shuffled(within, size, mixed(self.seed, block), epoch)
