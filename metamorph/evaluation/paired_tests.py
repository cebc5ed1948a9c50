"""Whether two models differ on the same samples: what each did with a sample is one pair."""

from collections.abc import Sequence
from math import comb

import numpy as np

from metamorph.evaluation.intervals import CONFIDENCE, RESAMPLES, Estimate


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided McNemar test (McNemar, 1947): how likely a split at least as uneven is
    among the samples that only one of two has right, if each were as likely to be that one.

    1 where there are none. Raises `ValueError` for other numbers of answers.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(one and not other for one, other in pairs)
    only_second = sum(other and not one for one, other in pairs)
    discordant = only_first + only_second
    tail = sum(comb(discordant, few) for few in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_difference(
    first: np.ndarray, second: np.ndarray, weights: np.ndarray, seed: int = 0
) -> Estimate:
    """How much larger the mean of the second is, with its 95 % bootstrap interval.

    Args:
        first, second: values [trainings, samples], of the same samples in the same order.
        weights: [samples], what each counts in a mean.

    Samples are drawn anew for both alike, and so are the trainings of each: with one of each this
    is the paired bootstrap of the differences. Of very few trainings the interval is too narrow.
    """
    samples = first.shape[1]
    if samples == 0 or second.shape[1] != samples:
        raise ValueError(f"expected values of the same samples, got {first.shape}, {second.shape}")

    def mean(values: np.ndarray, drawn: np.ndarray | slice) -> float:
        return float(np.average(values.mean(0)[drawn], weights=weights[drawn]))

    generator = np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = generator.integers(samples, size=samples)
        means = []
        for values in (first, second):
            trainings = generator.integers(len(values), size=len(values))
            means.append(mean(values[trainings], drawn))
        differences[number] = means[1] - means[0]
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (outside, 1 - outside))
    everything = slice(None)
    middle = mean(second, everything) - mean(first, everything)
    return Estimate(middle, float(low), float(high), samples)
