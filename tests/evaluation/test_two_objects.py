"""Of two shapes the checker sees what is there, on which side, and nothing that is not."""

import random
from dataclasses import replace

import pytest
from PIL import Image, ImageFilter

from metamorph.data.images import opened
from metamorph.data.toy.pairs import Item, Pair, random_pair, render_pair
from metamorph.data.toy.scenes import Scene, render
from metamorph.evaluation.checker import ALL_RIGHT, read_pair, score_pair
from metamorph.evaluation.options import Options
from metamorph.evaluation.suites import SUITES
from metamorph.evaluation.task_source import TOY
from metamorph.evaluation.two_objects import drawings_of_pairs, questions_of_pairs
from metamorph.model.siglip import SiglipEncoder
from metamorph.quickstart.run import ASSETS
from tests.evaluation.stand_in import NOTHING, StandIn

CIRCLE, SQUARE = Item("circle", "red"), Item("square", "blue")
PAIR = Pair(CIRCLE, SQUARE)
COUNT = 3


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_real_pictures_are_read_right_and_soft_ones_too(split):
    rng = random.Random(0)
    for pair in (random_pair(rng, split) for _ in range(60)):
        picture = render_pair(pair)
        assert read_pair(picture) == (pair.left, pair.right), pair
        assert read_pair(picture.filter(ImageFilter.GaussianBlur(0.7))) == (pair.left, pair.right)


def pasted(*parts: Scene) -> Image.Image:
    """Halves of other pictures beside or above each other: what no kind of sample shows."""
    whole = Image.new("RGB", (64, 64), (245,) * 3)
    for part in parts:
        picture = render(part)
        x, y = {"top left": (0, 0), "top right": (32, 0), "bottom left": (0, 32)}[part.place]
        whole.paste(picture.crop((x, y, x + 32, y + 32)), (x, y))
    return whole


PLANTED = {  # picture: objects, colours, all right
    "as asked": (render_pair(PAIR), True, True, True),
    "sides": (render_pair(Pair(SQUARE, CIRCLE)), True, True, False),
    "colours": (
        render_pair(Pair(Item("circle", "blue"), Item("square", "red"))), True, False, False,
    ),
    "one colour": (render_pair(replace(PAIR, left=Item("circle", "green"))), True, False, False),
    "one shape": (render_pair(replace(PAIR, left=Item("cross", "red"))), False, False, False),
    "twice the same": (render_pair(Pair(CIRCLE, CIRCLE)), False, False, False),
    "one in the middle": (render(Scene("circle", "red", "large", "center")), False, False, False),
    "small ones": (render(Scene("circle", "red", "small", "center", 4)), False, False, False),
    "in the corners": (
        pasted(Scene("circle", "red", "large", "top left"),
               Scene("square", "blue", "large", "top right")), True, True, True,
    ),
    "a third one": (
        pasted(Scene("circle", "red", "small", "top left"),
               Scene("circle", "red", "small", "bottom left")), False, False, False,
    ),
    "nothing": (Image.new("RGB", (64, 64), (245,) * 3), False, False, False),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_error_is_found(planted):
    picture, objects, colours, everything = PLANTED[planted]
    assert score_pair(picture, PAIR) == {
        "objects": objects, "colours": colours, ALL_RIGHT: everything,
    }  # fmt: skip


def test_the_suite_draws_and_asks():
    encoder = SiglipEncoder.from_pretrained(ASSETS / "encoder", grid=4)
    drawings, questions = drawings_of_pairs(COUNT, TOY), questions_of_pairs(COUNT, TOY)
    swapped = render_pair(Pair(drawings[1].pair.right, drawings[1].pair.left))
    drawn = [("", opened(drawings[0].sample.images[0])), ("", swapped), NOTHING]
    said = [(task.sample.turns[1].text, None) for task in questions]
    said[2] = ("a fish", None)
    samples = SUITES["two-objects"].run(StandIn(encoder, [*drawn, *said]), Options(COUNT))
    scores = [sample.scores for sample in samples]
    assert [one["objects"] for one in scores[:COUNT]] == [True, True, False]
    assert [one[ALL_RIGHT] for one in scores[:COUNT]] == [True, False, False]
    assert [one["right"] for one in scores[COUNT:]] == [True, True, False]
    assert scores[COUNT].keys() == {"right", f"right, {questions[0].attribute}"}
    assert [sample.cluster for sample in samples] == [
        task.combination for task in (*drawings, *questions)
    ]
    assert samples[1].drawn is swapped and samples[COUNT].drawn is None
