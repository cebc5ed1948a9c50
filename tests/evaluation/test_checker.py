"""The pixel checker must read real pictures right, and notice every single difference."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.data.toy.scenes import (
    COLOURS,
    COUNT_PLACES,
    IMAGE_SIZE,
    JITTER,
    PLACES,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    random_count_scene,
    random_scene,
    render,
)
from metamorph.evaluation.checker import ATTRIBUTES, CHANCE, read_scene, score

VALUES = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "place": tuple(PLACES)}
SCENES_PER_SPLIT = 150

offsets = st.tuples(st.floats(-JITTER, JITTER), st.floats(-JITTER, JITTER))
single_scenes = st.builds(
    Scene,
    shape=st.sampled_from(SHAPES),
    colour=st.sampled_from(tuple(COLOURS)),
    size=st.sampled_from(tuple(SIZES)),
    place=st.sampled_from(tuple(PLACES)),
    offset=offsets,
    ground=st.integers(238, 250),
)


def wrong_attributes(picture: Image.Image, scene: Scene) -> set[str]:
    return {name for name, is_right in score(picture, scene).items() if not is_right}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("make_scene", [random_scene, random_count_scene])
def test_reads_real_pictures(split, make_scene):
    rng = random.Random(7)
    scenes = [make_scene(rng, split) for _ in range(SCENES_PER_SPLIT)]
    scores = [score(render(scene), scene) for scene in scenes]
    for name in (*ATTRIBUTES, "count"):
        accuracy = sum(result[name] for result in scores) / len(scores)
        assert accuracy >= 0.99, (name, accuracy)


@settings(max_examples=60, deadline=None)
@given(single_scenes, st.sampled_from(ATTRIBUTES), st.data())
def test_notices_exactly_the_attribute_that_differs(scene, attribute, data):
    other = st.sampled_from([v for v in VALUES[attribute] if v != getattr(scene, attribute)])
    picture = render(replace(scene, **{attribute: data.draw(other)}))
    assert wrong_attributes(picture, scene) == {attribute}


@settings(max_examples=30, deadline=None)
@given(single_scenes, st.sampled_from(tuple(COUNT_PLACES)), st.sampled_from(tuple(COUNT_PLACES)))
def test_notices_another_count(scene, drawn, asked):
    several = replace(scene, size="small", place="center", count=drawn)
    expected = {"count"} if drawn != asked else set()
    assert wrong_attributes(render(several), replace(several, count=asked)) == expected


@pytest.mark.parametrize("colour", ["white", "black", (243, 200, 28)])
def test_blank_picture_shows_nothing(colour):
    blank = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), colour)
    assert read_scene(blank) is None
    scene = Scene("circle", "red", "small", "center")
    assert wrong_attributes(blank, scene) == {*ATTRIBUTES, "count"}


def test_speck_is_not_a_shape():
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 245, dtype=np.uint8)
    picture[30:34, 30:34] = COLOURS["red"]
    assert read_scene(Image.fromarray(picture)) is None


def test_noise_scores_no_better_than_chance():
    generator = np.random.default_rng(3)
    rng = random.Random(3)
    results = []
    for _ in range(150):
        noise = generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        results.append(score(Image.fromarray(noise), random_scene(rng, "train")))
    for name in ATTRIBUTES:
        accuracy = sum(result[name] for result in results) / len(results)
        assert accuracy <= CHANCE[name] + 0.15, (name, accuracy)
    all_right = sum(all(result[name] for name in ATTRIBUTES) for result in results)
    assert all_right / len(results) <= 0.05


def test_refuses_a_picture_of_another_size():
    with pytest.raises(ValueError, match="64 x 64"):
        read_scene(Image.new("RGB", (32, 64)))
