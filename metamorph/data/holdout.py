"""Records that a run never trains on: a share of them, chosen by their place in the file alone.

The records are cut into as many equal stretches as are held out, and of each stretch one is. Which
one depends on neither seed, epoch nor processes: runs on the same file hold out the same records.
"""

from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import Literal, Protocol

from metamorph.data.conversation import Sample
from metamorph.data.formats.records import Record, Records
from metamorph.data.order import mixed
from metamorph.data.sources import Source
from metamorph.errors import UserError

Portion = Literal["all", "training", "validation"]


class Positions(Protocol):
    """Some of the places of a file, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> int: ...

    def before(self, place: int) -> int:
        """How many of them lie before a place."""


class HeldOut:
    """The places that are held out of `count`: a `share` of them, at least one.

    Raises `UserError` where none would be left.
    """

    def __init__(self, count: int, share: float):
        self.count, self.held = count, max(1, round(share * count))
        if self.held >= count:
            raise UserError(
                f"data.validation: a share of {share:g} leaves none of {count} samples to train on"
            )

    def start(self, stretch: int) -> int:
        """Where a stretch begins. Constant time, as all that follows but for a bisection."""
        return stretch * self.count // self.held

    def __len__(self) -> int:
        return self.held

    def __getitem__(self, number: int) -> int:
        start = self.start(number)
        return start + mixed(number) % (self.start(number + 1) - start)

    def before(self, place: int) -> int:
        stretch = bisect_right(range(self.held), place, key=self.start) - 1
        return stretch + (self[stretch] < place)


class KeptIn:
    """All other places."""

    def __init__(self, held_out: HeldOut):
        self.held_out = held_out

    def __len__(self) -> int:
        return self.held_out.count - len(self.held_out)

    def __getitem__(self, number: int) -> int:
        stretch = bisect_right(range(len(self.held_out)), number, key=self._kept_before) - 1
        place = number + stretch
        return place + (place >= self.held_out[stretch])

    def _kept_before(self, stretch: int) -> int:
        """Of each earlier stretch, all places but one."""
        return self.held_out.start(stretch) - stretch

    def before(self, place: int) -> int:
        return place - self.held_out.before(place)


def positions(count: int, share: float, portion: Portion) -> Positions:
    """The places of one of the two portions."""
    held_out = HeldOut(count, share)
    return held_out if portion == "validation" else KeptIn(held_out)


class RecordsAt:
    """Some of the records of a file, as `Records`."""

    def __init__(self, records: Records, places: Positions):
        self.records, self.places = records, places

    @property
    def blocks(self) -> list[int] | None:
        if not self.records.blocks:
            return None
        before = [self.places.before(end) for end in accumulate(self.records.blocks, initial=0)]
        return [end - start for start, end in pairwise(before)]

    def __len__(self) -> int:
        return len(self.places)

    def where(self, position: int) -> str:
        return self.records.where(self.places[position])

    def record(self, position: int) -> Record:
        return self.records.record(self.places[position])


class SamplesAt:
    """Some of the samples of an epoch of a source that is not shuffled, as a `Source`."""

    def __init__(self, source: Source, places: Positions):
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, index: int) -> Sample:
        return self.source.sample(self.places[index % len(self)])
