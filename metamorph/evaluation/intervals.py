"""Means over pictures, with how far another draw of as many pictures might have moved them."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2**20  # values


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values, and its 95 % bootstrap interval from `low` to `high`, over so many
    `clusters` of values."""

    mean: float
    low: float
    high: float
    count: int
    clusters: int


def estimate(
    values: Sequence[float],
    seed: int = 0,
    weights: Sequence[float] | None = None,
    clusters: Sequence[str] | None = None,
) -> Estimate | None:
    """The mean of one value a sample with its percentile bootstrap interval; None without values.

    The samples are drawn anew, with replacement, `RESAMPLES` times, each with its weight (above 0;
    equal ones if none are given). With `clusters`, the name of one for each sample, clusters are
    drawn in place of samples, each with all that it has (Davison and Hinkley, 1997, 3.8): samples
    of one cluster may be as alike as they like, only clusters are taken for independent.

    Raises `ValueError` for a value that is not finite.
    """
    if not values:
        return None
    known = np.asarray(values, np.float64)
    if not np.isfinite(known).all():
        raise ValueError("values must be finite")
    share = np.ones(len(known)) if weights is None else np.asarray(weights, np.float64)
    cluster = numbered(range(len(known)) if clusters is None else clusters)
    sums, shares = np.bincount(cluster, known * share), np.bincount(cluster, share)
    size = len(sums)
    generator = np.random.default_rng(seed)
    # Some resamples at a time: all at once would be `RESAMPLES` times the values in memory.
    at_once = max(1, DRAWN_AT_ONCE // size)
    means = []
    for count in _parts(RESAMPLES, at_once):
        drawn = generator.integers(size, size=(count, size))
        means.append(sums[drawn].sum(1) / shares[drawn].sum(1))
    outside = (1 - CONFIDENCE) / 2
    low, high = map(float, np.quantile(np.concatenate(means), (outside, 1 - outside)))
    return Estimate(float(np.average(known, weights=share)), low, high, len(known), size)


def numbered(names: Iterable[Hashable]) -> list[int]:
    """Of each name its number, from 0 in the order in which they first come."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _parts(total: int, most: int) -> list[int]:
    """A number as a sum of parts of `most` or less."""
    return [min(most, total - start) for start in range(0, total, most)]
