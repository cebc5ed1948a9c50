"""Where samples come from. A source maps an index to a sample, and nothing else has state.

The order is a pure function of (seed, epoch, index), so that a run resumes by remembering one
number.
"""

from collections.abc import Callable
from typing import Protocol

from metamorph.data.conversation import Sample
from metamorph.data.formats.records import Record, Records
from metamorph.data.order import BlockOrder, shuffled
from metamorph.data.skips import located


class Source(Protocol):
    """`len` is the samples of one epoch; indices run on through the epochs."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Sample at a position of the endless order. Raises `SampleError` if it is unusable."""


class RecordSource:
    """The records of files as samples, in an order that depends on the seed and epoch.

    `family` says what conversation a record stands for, see `families`.
    """

    def __init__(
        self, records: Records, family: Callable[[Record], Sample], seed: int, shuffle: bool
    ):
        self.records, self.family = records, family
        self.seed, self.shuffle = seed, shuffle
        self.block_order = BlockOrder(records.blocks, seed) if records.blocks else None

    def __len__(self) -> int:
        return len(self.records)

    def _position(self, index: int) -> int:
        epoch, place = divmod(index, len(self))
        if not self.shuffle:
            return place
        if self.block_order is not None:
            return self.block_order.place(place, epoch)
        return shuffled(place, len(self), self.seed, epoch)

    def sample(self, index: int) -> Sample:
        position = self._position(index)
        with located(self.records.where(position)):
            return self.family(self.records.record(position))
