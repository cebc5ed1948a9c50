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


def estimate(values: Sequence[float], seed: int = 0) -> Estimate | None:
    """The mean of one value a picture with its percentile bootstrap interval; None without values.

    The pictures are drawn anew, with replacement, `RESAMPLES` times. Raises `ValueError` for a
    value that is not finite.
    """
    if not values:
        return None
    known = np.asarray(values, np.float64)
    if not np.isfinite(known).all():
        raise ValueError("values must be finite")
    generator = np.random.default_rng(seed)
    # Some resamples at a time: all at once would be `RESAMPLES` times the values in memory.
    at_once = max(1, DRAWN_AT_ONCE // len(known))
    means = np.concatenate(
        [
            known[generator.integers(len(known), size=(count, len(known)))].mean(1)
            for count in _parts(RESAMPLES, at_once)
        ]
    )
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (outside, 1 - outside))
    return Estimate(float(known.mean()), float(low), float(high), len(known))


def _parts(total: int, most: int) -> list[int]:
    """A number as a sum of parts of `most` or less."""
    return [min(most, total - start) for start in range(0, total, most)]
