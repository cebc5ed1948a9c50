"""The toy world: pure functions of a seed, exact words, a split that training never shows."""

import random

import pytest

from metamorph.data.toy.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    Scene,
    caption,
    is_held_out,
    random_count_scene,
    random_scene,
    render,
    zoom,
)
from metamorph.data.toy.tasks import DEFAULT_WEIGHTS, KINDS, make_task
from metamorph.data.toy.wording import PLAIN, QUESTIONS


def test_same_arguments_give_the_same_text_and_pixels():
    for index in range(20):
        first, second = make_task(3, index), make_task(3, index)
        assert first.sample.turns == second.sample.turns
        for one, other in zip(first.sample.images, second.sample.images, strict=True):
            assert one.tobytes() == other.tobytes()


def test_seed_index_and_split_all_matter():
    texts = {
        key: [make_task(seed, i, split).sample.id for i in range(start, start + 3)]
        for key, (seed, start, split) in {
            "base": (0, 0, "train"),
            "seed": (1, 0, "train"),
            "index": (0, 3, "train"),
            "split": (0, 0, "held_out"),
        }.items()
    }
    assert len({tuple(ids) for ids in texts.values()}) == len(texts)


def test_only_combinations_of_three_are_new_in_the_held_out_split():
    single = [Scene(s, c, "large", p) for s in SHAPES for c in COLOURS for p in PLACES]
    several = [
        Scene(s, c, "small", "center", n) for s in SHAPES for c in COLOURS for n in (2, 3, 4, 5)
    ]
    for scenes in (single, several):
        share = sum(map(is_held_out, scenes)) / len(scenes)
        assert 0.1 < share < 0.25
    train = [scene for scene in single if not is_held_out(scene)]
    assert {(s.shape, s.colour) for s in train} == {(s, c) for s in SHAPES for c in COLOURS}
    assert {(s.shape, s.place) for s in train} == {(s, p) for s in SHAPES for p in PLACES}
    assert {(s.colour, s.place) for s in train} == {(c, p) for c in COLOURS for p in PLACES}


@pytest.mark.parametrize("kind", KINDS)
def test_training_tasks_never_show_or_name_a_held_out_combination(kind):
    captions = {caption(task.scene) for task in (held_out_task(i) for i in range(200))}
    for index in range(150):
        task = make_task(7, index, "train", {kind: 1.0})
        assert not is_held_out(task.scene)
        text = " ".join(turn.text for turn in task.sample.turns)
        assert not any(held_out in text for held_out in captions)


def held_out_task(index: int):
    return make_task(7, index, "held_out", {"question": 0.5, "draw": 0.5})


def test_held_out_tasks_show_nothing_else():
    assert all(is_held_out(held_out_task(index).scene) for index in range(100))
    with pytest.raises(ValueError, match="split"):
        make_task(0, 0, "test")


@pytest.mark.parametrize("kind", KINDS)
def test_every_placeholder_has_its_image(kind):
    for index in range(40):
        sample = make_task(1, index, "train", {kind: 1.0}).sample
        placeholders = sum(turn.text.count("<image>") for turn in sample.turns)
        assert placeholders == len(sample.images)
        assert all(image.size == (64, 64) for image in sample.images)


def test_captions_are_exact():
    one = Scene("circle", "red", "large", "top left")
    assert caption(one) == "a large red circle at the top left"
    assert caption(Scene("cross", "blue", "small", "center", 3)) == "three small blue crosses"
    assert [PLAIN.answer(name, one) for name in QUESTIONS] == [
        "red", "circle", "large", "at the top left", "one",
    ]  # fmt: skip


def test_mixture_weights_are_respected_and_unknown_kinds_refused():
    kinds = [make_task(0, i, "train", {"draw": 3, "text": 1}).kind for i in range(400)]
    assert 0.68 < kinds.count("draw") / len(kinds) < 0.82
    assert set(DEFAULT_WEIGHTS) <= set(KINDS)
    with pytest.raises(ValueError, match="unknown kinds.*paint"):
        make_task(0, 0, "train", {"paint": 1.0})


def test_counted_shapes_are_drawn_that_often():
    rng = random.Random(0)
    areas = {}
    for _ in range(60):
        scene = random_count_scene(rng, "train")
        if scene.shape == "square":
            dark = sum(pixel != (scene.ground,) * 3 for pixel in _pixels(render(scene)))
            areas.setdefault(scene.count, []).append(dark)
    per_shape = [sum(a) / len(a) / count for count, a in areas.items()]
    assert max(per_shape) < 1.15 * min(per_shape)


def test_zoom_enlarges_the_shape():
    scene = random_scene(random.Random(2), "train")
    ground = (scene.ground,) * 3
    before = sum(pixel != ground for pixel in _pixels(render(scene)))
    after = sum(pixel != ground for pixel in _pixels(zoom(scene)))
    assert after > 2 * before


def _pixels(image):
    flat = image.tobytes()
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
