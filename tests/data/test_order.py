"""The order of samples: a permutation in every epoch, from numbers alone."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.data.order import BlockOrder, mixed, shuffled

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60)
@given(st.integers(1, 700), SEEDS, st.integers(0, 50))
def test_every_epoch_is_a_permutation(length, seed, epoch):
    assert sorted(shuffled(i, length, seed, epoch) for i in range(length)) == list(range(length))


def test_large_data_costs_nothing():
    length = 16_066_000
    places = {shuffled(i, length, 0, 0) for i in range(3000)}
    assert len(places) == 3000 and max(places) < length
    # Neighbours in the order come from everywhere in the file.
    tenths = Counter(place * 10 // length for place in places)
    assert all(240 < tenths[tenth] < 360 for tenth in range(10))


@pytest.mark.parametrize("length", [2, 3, 7, 16])
def test_every_sample_comes_at_every_place_equally_often(length):
    """Chi-square of (sample, place) over epochs; degrees of freedom are (length - 1) ** 2."""
    epochs = 4000
    seen = Counter(
        (place, shuffled(place, length, 1, epoch))
        for epoch in range(epochs)
        for place in range(length)
    )
    expected = epochs / length
    square = sum(
        (seen[place, sample] - expected) ** 2 / expected
        for place in range(length)
        for sample in range(length)
    )
    freedom = (length - 1) ** 2
    assert square < freedom + 5 * (2 * freedom) ** 0.5


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        return [shuffled(i, 50, seed, epoch) for i in range(50)]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert len({tuple(one) for one in orders}) == 4
    # Few samples stay where another epoch had them: about one on average.
    assert sum(a == b for a, b in zip(orders[0], orders[1], strict=True)) < 8
    assert mixed(1, 2) != mixed(2, 1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), SEEDS, st.integers(0, 5))
def test_blocks_stay_together_and_nothing_is_lost(sizes, seed, epoch):
    order = BlockOrder(sizes, seed)
    places = [order.place(i, epoch) for i in range(sum(sizes))]
    assert sorted(places) == list(range(sum(sizes)))
    block_of = [block for block, size in enumerate(sizes) for _ in range(size)]
    visited = [block_of[place] for place in places]
    changes = sum(one != other for one, other in zip(visited, visited[1:], strict=False))
    assert changes == len(sizes) - 1


def test_block_orders_hold_no_position():
    sizes = [5, 9, 3, 8]
    forwards, backwards = BlockOrder(sizes, 3), BlockOrder(sizes, 3)
    indices = [(epoch, i) for epoch in range(3) for i in range(25)]
    there = [forwards.place(i, epoch) for epoch, i in indices]
    back = [backwards.place(i, epoch) for epoch, i in reversed(indices)]
    assert there == back[::-1]
    assert there[:25] != there[25:50]
