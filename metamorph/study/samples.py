"""The samples of a cell: so many of each kind, shuffled anew in each epoch.

Sample number n of a kind is the same in every cell of a seed, so that a larger amount holds the
smaller ones, and cells differ by what was added alone.
"""

from dataclasses import replace

from metamorph.data.conversation import Sample
from metamorph.data.order import shuffled
from metamorph.data.toy.tasks import KINDS, make_task
from metamorph.study.cells import Cell
from metamorph.tokens import IMAGE_PLACEHOLDER


class StudySamples:
    """A source of exact amounts; see `metamorph.data.sources`."""

    def __init__(self, cell: Cell, seed: int):
        self.cell, self.seed = cell, seed
        self.places = [(kind, n) for kind, amount in cell.amounts for n in range(amount)]

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self))
        kind, number = self.places[shuffled(place, len(self), self.seed, epoch)]
        # Kinds have indices apart: equal ones would begin with the same random numbers.
        own = number * len(KINDS) + list(KINDS).index(kind)
        sample = make_task(self.seed, own, "train", {kind: 1.0}).sample
        return sample if self.cell.draws_zoom or kind != "zoom" else without_close_up(sample)


def without_close_up(sample: Sample) -> Sample:
    """A sample of zoom-then-answer whose answer is its words alone."""
    asked, answered = sample.turns
    words = replace(answered, text=answered.text.removeprefix(IMAGE_PLACEHOLDER))
    return replace(sample, turns=(asked, words), images=sample.images[:1])
