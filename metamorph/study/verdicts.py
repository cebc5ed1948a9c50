"""What a claim comes to over the seeds, by a rule that was there before the numbers.

A claim says that some quantity is above zero: a difference of scores, paired by seed, or a
correlation. Of its values, one a seed, the 95 % t interval decides:

* "seen" if the interval lies above zero;
* "not seen" if it ends below the smallest effect that would matter;
* "unclear at this scale" if it does neither, and always with fewer than three seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from metamorph.study.cells import Cell

LEAST_SEEDS = 3
SMALLEST_DIFFERENCE = 0.05  # of a share: five points of a hundred
SMALLEST_CORRELATION = 0.3
SEEN, NOT_SEEN, UNCLEAR = "seen", "not seen", "unclear at this scale"
NO_RUN = "no run yet"  # no seed has all cells of the claim
# 97.5 % quantiles of Student's t, for 1, 2, ... degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip
MOST_SEEDS = len(T_QUANTILES) + 1

Scores = Mapping[str, float]  # of one training


@dataclass(frozen=True)
class Spread:
    """Values over seeds: their mean, and its 95 % t interval, which two seeds or more have."""

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a seed, at least one and at most `MOST_SEEDS`."""
        mean = fmean(values)
        if len(values) < 2:
            return cls(tuple(values), mean, None, None)
        half = T_QUANTILES[len(values) - 2] * stdev(values) / len(values) ** 0.5
        return cls(tuple(values), mean, mean - half, mean + half)


@dataclass(frozen=True)
class Difference:
    """The claim that a score of some cells, their mean, is above that of others."""

    claim: str
    score: str
    above: tuple[Cell, ...]
    below: tuple[Cell, ...]
    smallest = SMALLEST_DIFFERENCE

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.above + self.below

    @property
    def scores(self) -> tuple[str, ...]:
        return (self.score,)

    def value(self, scores: Callable[[Cell], Scores]) -> float | None:
        """The difference within one seed."""
        above, below = (
            fmean(scores(cell)[self.score] for cell in cells) for cells in (self.above, self.below)
        )
        return above - below


@dataclass(frozen=True)
class Correlation:
    """The claim that two scores rise together over cells.

    Within each of the `groups`, which are cells that share all but one amount, so that what makes
    groups differ makes no correlation.
    """

    claim: str
    score: str
    other: str
    groups: tuple[tuple[Cell, ...], ...]
    smallest = SMALLEST_CORRELATION

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for group in self.groups for cell in group)

    @property
    def scores(self) -> tuple[str, ...]:
        return self.score, self.other

    def value(self, scores: Callable[[Cell], Scores]) -> float | None:
        """Pearson's correlation within one seed; None where a score is the same in all cells."""
        one, other = (
            [
                deviation
                for group in self.groups
                for deviation in _deviations([scores(cell)[name] for cell in group])
            ]
            for name in (self.score, self.other)
        )
        scale = (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5
        return sum(a * b for a, b in zip(one, other, strict=True)) / scale if scale else None


def _deviations(values: Sequence[float]) -> list[float]:
    """From their mean; exactly 0 where all are the same, for the mean of these may be rounded."""
    if min(values) == max(values):
        return [0.0] * len(values)
    mean = fmean(values)
    return [value - mean for value in values]


Claim = Difference | Correlation


@dataclass(frozen=True)
class Judged:
    """A claim with its values, None where there is none for some seed, and the verdict."""

    claim: Claim
    spread: Spread | None
    verdict: str


def judge(claim: Claim, seeds: Sequence[Callable[[Cell], Scores]]) -> Judged:
    """`seeds`: for each, the scores of every cell of the claim."""
    if not seeds:
        return Judged(claim, None, NO_RUN)
    values = [claim.value(scores) for scores in seeds]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Judged(claim, None, UNCLEAR)
    spread = Spread.of(known)
    return Judged(claim, spread, _verdict(spread, claim.smallest))


def _verdict(spread: Spread, smallest: float) -> str:
    if len(spread.values) < LEAST_SEEDS or spread.low is None or spread.high is None:
        return UNCLEAR
    if spread.low > 0:
        return SEEN
    return NOT_SEEN if spread.high < smallest else UNCLEAR
