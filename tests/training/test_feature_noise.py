"""Noise on the features of drawn pictures, as the model reads them back while it learns to draw."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.batch import Batch
from metamorph.training.draws import add_noise, draw_noise
from metamorph.training.language_stage import LanguageStage, batch_losses
from metamorph.training.loop import train
from tests.tiny_run import ALL_KINDS, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def stage(folder):
    config = tiny_config(folder, "instruct")
    config.data.kinds = ALL_KINDS
    config.training.feature_noise = 1.0
    return LanguageStage(config, CPU)


def test_only_pictures_of_answers_get_noise(stage):
    (row,) = stage.lanes.next_rows()
    noise = stage.drawn_noise(row, 0, 0)
    tokens = stage.module.config.tokens_per_image
    predicted = {int(target) // tokens for target in row.visual_targets}
    assert 0 < len(predicted) < len(noise)  # an edit has a picture of either kind
    for image, own in enumerate(noise):
        assert bool(own.any()) == (image in predicted)


def test_noise_is_that_of_its_step_and_lane(stage):
    """So a run that goes on, or that more processes share, trains on the same."""
    (row,) = stage.lanes.next_rows()
    first = stage.drawn_noise(row, 3, 1)
    assert torch.equal(first, stage.drawn_noise(row, 3, 1))
    assert not torch.equal(first, stage.drawn_noise(row, 4, 1))
    assert not torch.equal(first, stage.drawn_noise(row, 3, 2))


def test_what_is_read_has_noise_and_what_is_to_be_predicted_has_none(stage):
    stage.forward_backward(0)
    (row,), model = stage.rows, stage.module
    noise = stage.drawn_noise(row, 0, 0)
    clean = Batch.of(row, model.vision, CPU)
    noisy = replace(clean, noise=noise)
    seen = {}
    handle = model.projector.register_forward_pre_hook(
        lambda _, inputs: seen.update(read=inputs[0])
    )
    losses, targets = batch_losses(model, noisy, stage.counts)
    handle.remove()
    features = clean.visual_features(model.vision)
    read = seen["read"].unflatten(0, features.shape[:2])
    torch.testing.assert_close(read, add_noise(features, noise))
    assert (read - features).flatten(1).norm(dim=1).max() > 0.1
    expected, without = batch_losses(model, clean, stage.counts)
    assert torch.equal(targets, without)
    assert not torch.isclose(losses.visual, expected.visual, rtol=1e-6)


def test_a_row_without_drawn_pictures_trains(folder):
    config = tiny_config(folder, "instruct")
    config.data.kinds = {"question": 1.0}
    config.training.feature_noise = 0.5
    config.training.steps = 1
    train(config)
    assert read_metrics(Path(config.output))[-1]["text_loss"] > 0


def test_noise_of_a_picture_has_one_length_up_to_the_longest():
    generator = torch.Generator().manual_seed(0)
    noise = draw_noise(
        (200, 16, 64), 1.5, lambda distribution, shape: distribution(shape, generator=generator)
    )
    lengths = noise.norm(dim=-1)  # [pictures, tokens]
    assert lengths.mean(1).max() < 1.6
    assert lengths.mean(1).std() > 0.3
    assert (lengths.std(1) < 0.15 * lengths.mean(1)).all()
