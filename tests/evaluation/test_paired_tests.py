"""Paired tests beside values that were computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.evaluation.paired_tests import mcnemar, paired_difference


def answers(both: int, only_first: int, only_second: int) -> tuple[list[bool], list[bool]]:
    first = [True] * both + [True] * only_first + [False] * only_second
    second = [True] * both + [False] * only_first + [True] * only_second
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 5, 14 / 64),  # 2 (C(6,0) + C(6,1)) / 2^6
        (5, 1, 14 / 64),
        (0, 5, 2 / 32),
        (2, 10, 158 / 4096),  # 2 (1 + 12 + 66) / 2^12
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_the_exact_binomial_of_the_discordant(only_first, only_second, p):
    for both in (0, 7):
        assert mcnemar(*answers(both, only_first, only_second)) == pytest.approx(p, abs=1e-12)


def test_samples_of_a_cluster_change_sides_together():
    """Of clusters that are 3, 2 and -1 uneven, sums are +-3 +-2 +-1: of the eight that there are,
    -6, -4, 4 and 6 are as far from 0 as the 4 that was found."""
    first, second = [False] * 5 + [True], [True] * 5 + [False]
    assert mcnemar(first, second, list("aaabbc")) == 4 / 8
    assert mcnemar(first, second, list("aaaaaa")) == 1  # one cluster could be of either side
    assert mcnemar(first, second, list("abcdef")) == mcnemar(first, second) == 14 / 64
    assert mcnemar([True, False], [False, True], ["a", "a"]) == 1  # it is even within


def test_under_no_difference_p_of_clusters_is_as_rare_as_it_says():
    generator, small = np.random.default_rng(0), {"clusters": 0, "samples": 0}
    for _ in range(200):
        side = np.repeat(generator.random((12, 1)) < 0.5, 4, axis=1).ravel()  # a cluster at a time
        first, second, names = side.tolist(), (~side).tolist(), np.repeat(np.arange(12), 4).tolist()
        small["clusters"] += mcnemar(first, second, names) < 0.05
        small["samples"] += mcnemar(first, second) < 0.05
    assert small["clusters"] <= 0.08 * 200 < 0.25 * 200 < small["samples"]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_a_probability_and_knows_no_side(pairs):
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    p = mcnemar(first, second)
    assert 0 < p <= 1 and p == mcnemar(second, first)


def test_other_numbers_of_answers_are_refused():
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="of the same samples"):
        paired_difference(np.ones((1, 2)), np.ones((1, 3)), np.ones(2))


def test_pairing_takes_out_what_samples_have_in_common():
    generator = np.random.default_rng(0)
    hard = generator.normal(size=(1, 50))  # samples differ far more than the models do
    found = paired_difference(hard, hard + 0.1, np.ones(50))
    assert [found.mean, found.low, found.high] == pytest.approx([0.1] * 3)
    unpaired = paired_difference(hard, hard[:, ::-1] + 0.1, np.ones(50))
    assert unpaired.low < 0 < unpaired.high


def test_a_sample_counts_by_its_weight():
    found = paired_difference(np.zeros((1, 2)), np.array([[1.0, 0.0]]), np.array([3.0, 1.0]))
    assert found.mean == pytest.approx(0.75)


def test_a_cluster_is_one_pair_however_many_samples_it_has():
    first, second = np.zeros((1, 100)), np.array([[1.0, 0.0, 0.0, 0.0] * 25])
    found = paired_difference(first, second, np.ones(100), ["a", "b", "c", "d"] * 25)
    once = paired_difference(first[:, :4], second[:, :4], np.ones(4))
    assert [found.mean, found.low, found.high] == pytest.approx([once.mean, once.low, once.high])
    assert (found.count, found.clusters) == (100, 4)


def test_trainings_that_differ_widen_the_interval():
    first, steady = np.zeros((3, 40)), np.full((3, 40), 0.5)
    shaky = steady + np.array([[-0.2], [0.0], [0.2]])
    narrow = paired_difference(first, steady, np.ones(40))
    wide = paired_difference(first, shaky, np.ones(40))
    assert narrow.mean == pytest.approx(wide.mean) == pytest.approx(0.5)
    assert narrow.high - narrow.low == pytest.approx(0) and wide.low < 0.4 < 0.6 < wide.high
