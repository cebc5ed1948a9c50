"""Tiles on SMs: small cases by hand, and what holds for all."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamorph_kernels import key_intervals
from metamorph_kernels.aot.schedule import (
    KERNELS,
    Schedule,
    Tiling,
    by_counter,
    early_first,
    late_first,
    longest_first,
    round_robin,
    tile_costs,
)

COSTS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
FEW_COSTS = st.lists(st.integers(1, 9), min_size=1, max_size=7)
PROGRAMS = st.integers(1, 6)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def test_in_turn():
    schedule = round_robin([3, 1, 2, 1], programs=2)
    assert schedule == Schedule((5, 2))
    assert schedule.makespan == 5
    assert schedule.idle == pytest.approx(3 / 10)


def test_by_counter():
    # Program 1 is done first and takes the third tile; both are done at 3, the first one goes on.
    assert sorted(by_counter([3, 1, 2, 1], programs=2).busy) == [3, 4]


def test_fewer_tiles_than_programs_leave_some_idle():
    assert by_counter([2, 2], programs=4).idle == pytest.approx(1 / 2)


@given(COSTS, PROGRAMS)
def test_busy_and_idle_time_make_up_the_whole(costs, programs):
    for schedule in (round_robin(costs, programs), by_counter(costs, programs)):
        assert len(schedule.busy) == programs
        assert sum(schedule.busy) == sum(costs)
        whole = programs * schedule.makespan
        assert sum(schedule.busy) + schedule.idle * whole == pytest.approx(whole)


@given(COSTS, PROGRAMS)
def test_a_counter_is_within_the_longest_tile_of_the_mean(costs, programs):
    makespan = by_counter(costs, programs).makespan
    assert makespan <= sum(costs) / programs + (1 - 1 / programs) * max(costs) + 1e-9


@given(FEW_COSTS, st.integers(1, 3))
def test_longest_first_is_within_a_third_of_the_best(costs, programs):
    best = min(
        max(sum(cost for cost, at in zip(costs, places, strict=True) if at == program)
            for program in range(programs))
        for places in product(range(programs), repeat=len(costs))
    )  # fmt: skip
    makespan = by_counter(longest_first(costs), programs).makespan
    assert best <= makespan <= (4 / 3 - 1 / (3 * programs)) * best + 1e-9


QUERIES = Tiling(tokens=4, block=2, copies=3, products=2)
KEYS = Tiling(tokens=4, block=2, copies=3, products=4, repeats=2, by_keys=True)


def test_steps_of_documents():
    intervals = key_intervals([5, 3, 4])
    # Queries 0-3 see keys 0-3; 4-7 keys 0-7, of two documents; 8-11 keys 8-11.
    assert QUERIES.steps(intervals) == [2, 4, 2]
    # Keys 0-3 are seen by queries 0-4; 4-7 by 4-7; 8-11 by 8-11. Two heads each.
    assert KEYS.steps(intervals) == [6, 4, 4]


def test_steps_of_a_span_and_of_a_last_tile_that_is_not_full():
    intervals = key_intervals([6], [(2, 6)])
    assert QUERIES.steps(intervals) == [3, 3]
    assert KEYS.steps(intervals) == [6, 4]


@given(LENGTHS, st.integers(1, 5), st.integers(1, 5))
def test_steps_cover_from_the_first_to_the_last_pair_of_a_tile(lengths, tokens, block):
    intervals = key_intervals(lengths)
    position = torch.arange(sum(lengths))
    visible = (position >= intervals.row_start[:, None]) & (position < intervals.row_end[:, None])
    for by_keys, pairs in ((False, visible), (True, visible.T)):
        tiling = Tiling(tokens, block, copies=1, products=2, by_keys=by_keys)
        seen = [rows.any(0).nonzero() for rows in pairs.split(tokens)]
        spans = [int(each[-1] - each[0]) + 1 for each in seen]
        assert tiling.steps(intervals) == [-(-span // block) for span in spans]


def test_orders():
    assert late_first([1, 3, 2]) == [2, 3, 1]
    assert early_first([1, 3, 2]) == [1, 3, 2]
    assert longest_first([1, 3, 2]) == [3, 2, 1]


def test_tiles_of_all_heads_stand_side_by_side():
    clocks = QUERIES.step_clocks
    assert tile_costs(QUERIES, [2, 1], 10) == [2 * clocks + 10] * 3 + [clocks + 10] * 3


def test_clocks_of_the_forward():
    # 2 products of 128 x 128 x 128 at 4096 FLOP a clock; exp2 of 64 x 128 scores at 16 a clock.
    forward = KERNELS["forward"]
    assert forward.step_clocks == 2048
    assert forward.hidden_start_clocks == 512
    # Bounds, operands, 560 instructions of each of four warps on four issue slots, the result.
    assert forward.start_clocks == 600 + 1000 + 560 + 512 + 1000
