"""Means over pictures, with how far another draw of as many pictures might have moved them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWN_AT_ONCE = 2**20  # values


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values, and its 95 % bootstrap interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    count: int


def estimate(
    values: Sequence[float], seed: int = 0, weights: Sequence[float] | None = None
) -> Estimate | None:
    """The mean of one value a sample with its percentile bootstrap interval; None without values.

    The samples are drawn anew, with replacement, `RESAMPLES` times, each with its weight (above 0;
    equal ones if none are given). Raises `ValueError` for a value that is not finite.
    """
    if not values:
        return None
    known = np.asarray(values, np.float64)
    if not np.isfinite(known).all():
        raise ValueError("values must be finite")
    share = np.ones(len(known)) if weights is None else np.asarray(weights, np.float64)
    generator = np.random.default_rng(seed)
    # Some resamples at a time: all at once would be `RESAMPLES` times the values in memory.
    at_once = max(1, DRAWN_AT_ONCE // len(known))
    means = []
    for count in _parts(RESAMPLES, at_once):
        drawn = generator.integers(len(known), size=(count, len(known)))
        means.append((known * share)[drawn].sum(1) / share[drawn].sum(1))
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), (outside, 1 - outside))
    return Estimate(float(np.average(known, weights=share)), float(low), float(high), len(known))


def _parts(total: int, most: int) -> list[int]:
    """A number as a sum of parts of `most` or less."""
    return [min(most, total - start) for start in range(0, total, most)]
