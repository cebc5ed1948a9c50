"""Bootstrap intervals beside distributions that are known."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.evaluation.intervals import Estimate, estimate


def quantile(successes: int, count: int, share: float) -> float:
    """Of the mean of `count` draws that succeed `successes` times in `count`: the bootstrap of such
    values is this binomial distribution and nothing else."""
    chance, below = successes / count, 0.0
    for found in range(count + 1):
        below += comb(count, found) * chance**found * (1 - chance) ** (count - found)
        if below >= share:
            return found / count
    return 1.0


@pytest.mark.parametrize(("successes", "count"), [(30, 40), (5, 50), (99, 100)])
def test_the_interval_of_successes_is_that_of_the_binomial(successes, count):
    found = estimate([1.0] * successes + [0.0] * (count - successes))
    assert found.mean == pytest.approx(successes / count) and found.count == count
    # One success more or less is as near as 2000 resamples come.
    assert found.low == pytest.approx(quantile(successes, count, 0.025), abs=1.01 / count)
    assert found.high == pytest.approx(quantile(successes, count, 0.975), abs=1.01 / count)


def test_nine_in_ten_intervals_and_more_hold_the_truth():
    generator, chance, held = np.random.default_rng(0), 0.7, 0
    for seed in range(200):
        right = (generator.random(50) < chance).astype(float).tolist()
        found = estimate(right, seed)
        held += found.low <= chance <= found.high
    assert 180 <= held < 200  # 95 % of them are expected, a little less of so few values


def test_a_weight_counts_as_often_as_the_value():
    weighted, repeated = estimate([1.0, 0.0], weights=[3, 1]), estimate([1.0, 1.0, 1.0, 0.0])
    assert weighted.mean == repeated.mean == 0.75
    assert (weighted.low, weighted.high, weighted.count) == (0, 1, 2)
    equal = [0.1, 0.5, 0.7]
    assert estimate(equal, 3) == estimate(equal, 3, weights=[1, 1, 1])


def test_a_cluster_is_one_draw_however_often_it_was_asked():
    """Four captions, each asked 25 times: of 100 samples only four say anything new."""
    right = [1.0, 1.0, 1.0, 0.0] * 25
    found = estimate(right, clusters=["a", "b", "c", "d"] * 25)
    once = estimate([1.0, 1.0, 1.0, 0.0])
    assert (found.mean, found.low, found.high) == (once.mean, once.low, once.high)
    assert (found.count, found.clusters) == (100, 4)
    assert estimate(right).high - estimate(right).low < 0.5 * (found.high - found.low)


def test_by_hand_two_clusters_of_unequal_size():
    """Drawn twice from {3 right of 3, 0 right of 1}: 1 and 0 in a quarter each, 3/4 in a half."""
    found = estimate([1.0, 1.0, 1.0, 0.0], clusters=["a", "a", "a", "b"])
    assert (found.mean, found.low, found.high) == (0.75, 0, 1)
    weighted = estimate([1.0, 0.0], weights=[3, 1])
    assert (found.low, found.high) == (weighted.low, weighted.high)


def test_clusters_hold_the_truth_where_samples_taken_for_independent_do_not():
    """Combinations differ in how often they are drawn right; what is estimated is their mean."""
    generator, truth, rounds = np.random.default_rng(0), 0.5, 150
    held = {"clusters": 0, "samples": 0}
    for seed in range(rounds):
        chances = generator.beta(0.5, 0.5, size=20)  # of a combination; 0.5 in the mean
        right = (generator.random((20, 5)) < chances[:, None]).astype(float).ravel().tolist()
        names = [f"combination {number}" for number in range(20) for _ in range(5)]
        for name, clusters in (("clusters", names), ("samples", None)):
            found = estimate(right, seed, clusters=clusters)
            held[name] += found.low <= truth <= found.high
    assert held["clusters"] >= 0.88 * rounds  # 95 % are expected, a little less of so few
    assert held["samples"] < 0.8 * rounds


def test_equal_values_have_an_interval_of_no_width_and_no_values_none():
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 3, 3)
    assert estimate([]) is None


def test_more_values_narrow_the_interval_as_their_root():
    few, many = estimate([0.0, 1.0] * 50), estimate([0.0, 1.0] * 5000)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.15)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_the_mean_lies_among_the_values_and_a_seed_repeats_the_interval(values, seed):
    found = estimate(values, seed)
    assert found == estimate(values, seed)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_what_is_not_finite_has_no_mean():
    with pytest.raises(ValueError, match="finite"):
        estimate([1.0, float("inf")])
