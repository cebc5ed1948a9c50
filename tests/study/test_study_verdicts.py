"""Claims are judged by their 95 % t interval over seeds, and by nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamorph.study.cells import Cell
from metamorph.study.verdicts import (
    MOST_SEEDS,
    NO_RUN,
    NOT_SEEN,
    SEEN,
    T_QUANTILES,
    UNCLEAR,
    Correlation,
    Difference,
    Spread,
    judge,
)

ONE, TWO, THREE = (Cell.of(draw=n) for n in (1, 2, 3))
SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=MOST_SEEDS)


def judged(*differences: float):
    """The claim that ONE is above TWO, with such a difference in each seed."""
    scores = [{ONE: {"right": 0.5 + d}, TWO: {"right": 0.5}} for d in differences]
    claim = Difference("one is better", "right", (ONE,), (TWO,))
    return judge(claim, [each.__getitem__ for each in scores])


@pytest.mark.parametrize("freedom", range(1, len(T_QUANTILES) + 1))
def test_quantiles_are_those_of_the_t_distribution(freedom):
    """What lies above each is 2.5 % of the density, summed over x = tan(angle)."""
    least = math.atan(T_QUANTILES[freedom - 1])
    angles, step = np.linspace(least, math.pi / 2, 20_001, retstep=True)
    x = np.tan(angles[:-1] + step / 2)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2) * (1 + x * x)
    assert density.sum() * step == pytest.approx(0.025, abs=4e-5)


@given(SHARES)
def test_an_interval_is_around_the_mean_and_no_wider_for_what_all_agree_on(values):
    spread = Spread.of(values)
    assert spread.low <= spread.mean + 1e-9 and spread.mean <= spread.high + 1e-9
    assert spread.high - spread.mean == pytest.approx(spread.mean - spread.low, abs=1e-9)
    same = Spread.of([values[0]] * len(values))
    assert same.high - same.low == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.20, 0.22, 0.24), SEEN),
        ((0.01, 0.011, 0.012), SEEN),  # small, and the same every time
        ((0.00, 0.01, -0.01), NOT_SEEN),
        ((-0.2, -0.2, -0.21), NOT_SEEN),  # the reverse is not what was claimed
        ((0.0, 0.0, 0.0), NOT_SEEN),
        ((0.3, 0.1, -0.1), UNCLEAR),
        ((0.05, 0.06, -0.02), UNCLEAR),  # half the seeds are no proof, nor is it too small
        ((0.20, 0.22), UNCLEAR),  # two seeds
        ((0.2,), UNCLEAR),
        ((), NO_RUN),
    ],
)  # fmt: skip
def test_the_rule(differences, verdict):
    assert judged(*differences).verdict == verdict


@given(SHARES)
def test_a_verdict_follows_from_its_interval(differences):
    found = judged(*differences)
    if len(differences) < 3:
        assert found.verdict == UNCLEAR
    elif found.verdict == SEEN:
        assert found.spread.low > 0
    elif found.verdict == NOT_SEEN:
        assert found.spread.high < Difference.smallest
    else:
        assert found.spread.low <= 0 and found.spread.high >= Difference.smallest


def test_a_difference_is_between_means_of_cells_within_a_seed():
    scores = {ONE: {"right": 0.9}, TWO: {"right": 0.5}, THREE: {"right": 0.2}}
    claim = Difference("one and two are better", "right", (ONE, TWO), (THREE,))
    assert claim.value(scores.__getitem__) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=9))
def test_a_correlation_in_one_group_is_pearsons(pairs):
    cells = [Cell.of(draw=n + 1) for n in range(len(pairs))]
    scores = {cell: {"a": a, "b": b} for cell, (a, b) in zip(cells, pairs, strict=True)}
    found = Correlation("they rise together", "a", "b", (tuple(cells),)).value(scores.__getitem__)
    one, other = np.transpose(pairs)
    if min(one.std(), other.std()) > 1e-3:
        assert found == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)


def test_what_makes_groups_differ_makes_no_correlation():
    """Both scores are higher in the second group; within each, one rises and the other falls."""
    cells = [Cell.of(draw=n) for n in (1, 2, 3, 4)]
    values = [(0.1, 0.2), (0.2, 0.1), (0.8, 0.9), (0.9, 0.8)]
    scores = {cell: {"a": a, "b": b} for cell, (a, b) in zip(cells, values, strict=True)}
    apart = Correlation("", "a", "b", (tuple(cells[:2]), tuple(cells[2:])))
    together = Correlation("", "a", "b", (tuple(cells),))
    assert apart.value(scores.__getitem__) == pytest.approx(-1)
    assert together.value(scores.__getitem__) > 0.9


@given(st.floats(0, 1), st.floats(0, 1))
def test_scores_that_never_move_have_no_correlation_and_no_verdict(one, other):
    """Though the mean of three equal numbers need not be that number."""
    cells = ONE, TWO, THREE
    moving = {cell: {"a": one, "b": n / 2} for n, cell in enumerate(cells)}
    still = {cell: {"a": one, "b": other} for cell in cells}
    for scores in (moving, still):
        found = judge(Correlation("", "a", "b", (cells,)), [scores.__getitem__] * 3)
        assert found.spread is None and found.verdict == UNCLEAR
