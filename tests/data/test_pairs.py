"""Two shapes side by side: only who asks for them gets any, and all else stays as it was."""

import pytest

from metamorph.data.toy.english.wording import PHRASINGS, English
from metamorph.data.toy.pairs import Item, Pair, is_held_out_pair, pair_caption
from metamorph.data.toy.scenes import COLOURS, SHAPES
from metamorph.data.toy.source import ToyScenes
from metamorph.data.toy.tasks import ALL_KINDS, DEFAULT_WEIGHTS, KINDS, make_task
from metamorph.data.toy.tokenizer import corpus
from metamorph.errors import UserError

PAIRS = {"pair": 1.0}
EVERY = [
    Pair(Item(one, first), Item(other, second))
    for one in SHAPES for other in SHAPES if one != other
    for first in COLOURS for second in COLOURS if first != second
]  # fmt: skip


def others(pair: Pair, left_out: int) -> tuple[str, ...]:
    """Three of the four values of a pair."""
    values = pair.left.shape, pair.left.colour, pair.right.shape, pair.right.colour
    return values[:left_out] + values[left_out + 1 :]


def tasks(count: int, split: str = "train", **options):
    return [make_task(0, index, split, PAIRS, **options) for index in range(count)]


def test_what_does_not_ask_for_pairs_knows_nothing_of_them():
    assert ALL_KINDS.keys() - KINDS.keys() == {"pair"} and "pair" not in DEFAULT_WEIGHTS
    assert not any(" on the left" in text for text in corpus())


def test_a_run_can_ask_for_them():
    sample = ToyScenes(0, PAIRS, 4).sample(1)
    assert sample.id == "toy-train-0-1-pair" and sample.turns == tasks(2)[1].sample.turns
    with pytest.raises(UserError, match="data.kinds: unknown .*'pairs'.*'pair'"):
        ToyScenes(0, {"pairs": 1.0}, 4)


def test_a_sixth_is_held_out_and_every_three_values_are_seen_together():
    held_out = {pair for pair in EVERY if is_held_out_pair(pair)}
    assert len(EVERY) == 360 and 40 <= len(held_out) <= 80
    known = set(EVERY) - held_out
    for left_out in range(4):
        assert {others(pair, left_out) for pair in known} == {others(p, left_out) for p in EVERY}
    for split in ("train", "held_out"):
        for task in tasks(30, split):
            assert task.pair is not None and task.combination == task.pair.combination
            assert is_held_out_pair(task.pair) == (split == "held_out")


def test_in_plain_words_a_request_says_all_and_a_question_has_one_answer():
    pair = Pair(Item("circle", "red"), Item("square", "blue"))
    assert pair_caption(pair) == "a red circle on the left and a blue square on the right"
    drawn = asked = 0
    for task in tasks(40):
        request, response = (turn.text for turn in task.sample.turns)
        if response == "<image>":
            drawn += 1
            assert request == f"Generate an image of {pair_caption(task.pair)}."
        elif task.attribute == "colour":
            asked += 1
            [item] = [i for i in (task.pair.left, task.pair.right) if i.shape in request]
            assert response == item.colour
        else:
            asked += 1
            side = "left" if "left" in request else "right"
            assert response == getattr(task.pair, side).shape
    assert drawn >= 10 <= asked


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_english_says_the_same_of_the_same_pairs(phrasing):
    for plain, task in zip(tasks(40), tasks(40, wording=English(phrasing)), strict=True):
        assert task.pair == plain.pair and task.attribute == plain.attribute
        assert task.sample.turns[1] == plain.sample.turns[1]
        request = task.sample.turns[0].text
        assert "{" not in request
        if phrasing != "new_words" and not task.attribute:
            said = request.lower()
            assert all(
                any(word in said for word in words)
                for words in ([task.pair.left.colour, "crimson", "emerald", "violet"],
                              [task.pair.right.shape, "disc", "plus sign"])
            )  # fmt: skip
