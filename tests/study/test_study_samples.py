"""A cell has exactly the samples that it says."""

from collections import Counter
from dataclasses import replace

from metamorph.data.toy.tasks import KINDS
from metamorph.study.cells import TOKENS, Cell
from metamorph.study.samples import StudySamples


def kind_of(sample) -> str:
    return sample.id.rpartition("-")[2]


def test_every_epoch_holds_each_sample_once_in_another_order():
    samples = StudySamples(Cell.of(draw=7, question=12), seed=3)
    assert len(samples) == 19
    first, second = ([samples.sample(n).id for n in range(at, at + 19)] for at in (0, 19))
    assert len(set(first)) == 19 and sorted(first) == sorted(second) and first != second
    kinds = Counter(kind_of(samples.sample(n)) for n in range(19))
    assert kinds == {"draw": 7, "question": 12}


def test_a_larger_amount_holds_the_smaller_and_other_kinds_change_nothing():
    def ids(cell: Cell) -> set[str]:
        samples = StudySamples(cell, seed=0)
        return {samples.sample(n).id for n in range(len(samples))}

    few = ids(Cell.of(draw=5))
    assert few < ids(Cell.of(draw=9)) and few < ids(Cell.of(draw=5, question=4))
    assert few == ids(Cell.of(50, draw=5))  # which sees them again
    assert not few & {sample for sample in ids(Cell.of(question=5))}


def test_seeds_have_other_samples():
    one, other = (StudySamples(Cell.of(draw=3), seed) for seed in (0, 1))
    assert {one.sample(n).id for n in range(3)}.isdisjoint(other.sample(n).id for n in range(3))


def test_without_the_close_up_the_words_are_the_same():
    shown = StudySamples(Cell.of(zoom=3), seed=0)
    spoken = StudySamples(replace(Cell.of(zoom=3), draws_zoom=False), seed=0)
    for number in range(3):
        one, other = shown.sample(number), spoken.sample(number)
        assert one.turns[0] == other.turns[0] and len(one.images) == 2 == len(other.images) + 1
        assert one.turns[1].text == f"<image>{other.turns[1].text}"


def test_tokens_are_reckoned_for_every_kind_with_pictures():
    assert set(TOKENS) == set(KINDS) - {"text"}
    cell = Cell.of(draw=10)
    assert Cell.of(20, draw=10).tokens == 2 * cell.tokens
    assert replace(cell, grid=8).tokens > 2 * cell.tokens
