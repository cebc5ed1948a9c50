"""Measures of likeness beside cases that were reckoned by hand."""

import math

import pytest
import torch
from PIL import Image

from metamorph.evaluation.similarity import (
    ShuffledPairs,
    peak_signal_to_noise,
    pixels_of,
    structural_similarity,
    token_cosines,
)


def test_the_cosine_of_a_picture_is_the_mean_over_its_tokens():
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # one picture of two tokens
    others = torch.tensor([[[2.0, 0.0], [3.0, 0.0]]])  # the first the same way, the second across
    assert token_cosines(features, others) == [0.5]
    assert token_cosines(features, -features) == [-1.0]


def test_decibels_count_the_squared_difference():
    grey, lighter = (Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 151))
    [decibels] = peak_signal_to_noise(pixels_of([grey]), pixels_of([lighter]))
    assert decibels == pytest.approx(10 * math.log10(1 / 0.2**2))  # 51 of 255 levels are a fifth
    black, white = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "white")
    pixels = pixels_of([black, grey]), pixels_of([white, grey])
    assert peak_signal_to_noise(*pixels) == [0.0, math.inf]


def test_structural_similarity_of_flat_pictures_is_that_of_their_means():
    levels = 100 / 255, 150 / 255
    flat = [pixels_of([Image.new("RGB", (16, 16), (round(255 * level),) * 3)]) for level in levels]
    constant = 0.01**2  # (k1 x range)^2 of Wang et al. 2004; variances and their constants cancel
    expected = (2 * levels[0] * levels[1] + constant) / (levels[0] ** 2 + levels[1] ** 2 + constant)
    assert structural_similarity(*flat) == pytest.approx([expected])


def test_equal_pictures_are_alike_in_full():
    pixels = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    assert structural_similarity(pixels, pixels) == pytest.approx([1, 1, 1], abs=1e-9)


def test_pixels_are_shares_of_full_levels():
    picture = Image.new("RGB", (2, 1), (255, 51, 0))
    expected = torch.tensor([1, 0.2, 0], dtype=torch.float64).reshape(1, 3, 1, 1)
    assert torch.allclose(pixels_of([picture]), expected.expand(1, 3, 1, 2))


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 3], [4, 1]])
def test_shuffled_pairs_are_the_same_in_any_batches_and_never_true_ones(sizes):
    features = torch.eye(5)[:, None]  # [5, 1, 5]: one token each, all at right angles
    pairs, whole = ShuffledPairs(), ShuffledPairs()
    for part in features.split(sizes):
        pairs.add(part, part)
    assert pairs.cosines() == [0.0] * 5
    drawn = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = token_cosines(drawn, drawn.roll(1, 0))  # each with the one before it
    for part in drawn.split(sizes):
        whole.add(part, part)
    assert sorted(whole.cosines()) == pytest.approx(sorted(expected))


def test_one_picture_has_no_other():
    pairs = ShuffledPairs()
    assert pairs.cosines() == []
    pairs.add(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    assert pairs.cosines() == []
