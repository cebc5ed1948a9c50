"""Whether two models differ on the same samples: what each did with a sample is one pair."""

from collections.abc import Sequence

import numpy as np

from metamorph.evaluation.intervals import CONFIDENCE, RESAMPLES, Estimate, numbered


def mcnemar(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[str] | None = None
) -> float:
    """The exact two-sided McNemar test (McNemar, 1947): how likely a split at least as uneven is
    among the samples that only one of two has right, if each were as likely to be that one.

    With `clusters`, the name of one for each sample, all samples of a cluster change sides
    together: the permutation test of which McNemar's is the case of clusters of one sample.
    1 where both have the same right. Raises `ValueError` for other numbers of answers.
    """
    cluster = numbered(range(len(first)) if clusters is None else clusters)
    uneven = [0] * (max(cluster, default=-1) + 1)  # by cluster: right in the second alone, less
    for one, other, number in zip(first, second, cluster, strict=True):  # those in the first alone
        uneven[number] += other - one
    ways = {0: 1}  # of how many choices of sides each sum comes
    for size in filter(None, uneven):
        before, ways = ways, {}
        for total, count in before.items():
            for changed in (total - size, total + size):
                ways[changed] = ways.get(changed, 0) + count
    found = abs(sum(uneven))
    return sum(n for total, n in ways.items() if abs(total) >= found) / sum(ways.values())


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
) -> Estimate:
    """How much larger the mean of the second is, with its 95 % bootstrap interval.

    Args:
        first, second: values [trainings, samples], of the same samples in the same order.
        weights: [samples], what each counts in a mean.
        clusters: the name of one for each sample; without, each is its own.

    Clusters are drawn anew for both alike, and so are the trainings of each: with one of each this
    is the paired bootstrap of the differences. Of very few trainings the interval is too narrow.
    """
    samples = first.shape[1]
    if samples == 0 or second.shape[1] != samples:
        raise ValueError(f"expected values of the same samples, got {first.shape}, {second.shape}")
    cluster = numbered(range(samples) if clusters is None else clusters)
    shares = np.bincount(cluster, weights)  # [clusters], and sums are [trainings, clusters]
    sums = [
        np.array([np.bincount(cluster, training * weights) for training in side])
        for side in (first, second)
    ]

    def mean(side: np.ndarray, drawn: np.ndarray | slice) -> float:
        return float(side.mean(0)[drawn].sum() / shares[drawn].sum())

    generator = np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = generator.integers(len(shares), size=len(shares))
        means = []
        for side in sums:
            trainings = generator.integers(len(side), size=len(side))
            means.append(mean(side[trainings], drawn))
        differences[number] = means[1] - means[0]
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, (outside, 1 - outside))
    everything = slice(None)
    middle = mean(sums[1], everything) - mean(sums[0], everything)
    return Estimate(middle, float(low), float(high), samples, len(shares))
