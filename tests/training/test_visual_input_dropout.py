"""Pictures whose own tokens a step hides, so that each is predicted from the words alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metamorph.config import ParallelConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.data.toy.tasks import make_task
from metamorph.errors import UserError
from metamorph.model.opening import open_model
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.batch import Batch, shown_pictures
from metamorph.training.draws import Draws
from metamorph.training.language_stage import batch_losses
from metamorph.training.loop import train
from metamorph.training.rules import check_plan, check_rules
from tests.processes import run_processes
from tests.tiny_run import ALL_KINDS, tiny_config

CPU = torch.device("cpu")
ALMOST_ALL = 1 - 1e-7  # of the pictures


@pytest.fixture
def model_and_row(folder):
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
    documents = [encoder.encode(make_task(0, i, "train", ALL_KINDS).sample) for i in range(40)]
    return model, pack_row(documents, sum(map(len, documents)), 0)


def test_a_share_of_the_predicted_pictures_is_hidden_and_no_other(model_and_row):
    model, row = model_and_row
    tokens = model.config.tokens_per_image
    predicted = set((row.visual_targets // tokens).tolist())
    assert 10 < len(predicted) < len(row.visual_positions) // tokens
    hidden = []
    for step in range(10):
        shown = shown_pictures(row, tokens, 0.25, Draws(0, step, [0]))
        found = set((shown == 0).nonzero()[:, 0].tolist())
        assert found <= predicted and shown.sum() == len(shown) - len(found)
        hidden.append(found)
    assert sum(map(len, hidden)) / 10 / len(predicted) == pytest.approx(0.25, abs=0.1)
    assert len(set(map(frozenset, hidden))) == 10  # others in each step
    assert shown_pictures(row, tokens, 0.0, Draws(0, 0, [0])) is None


def test_what_is_hidden_is_still_the_target(model_and_row):
    """Targets are of the true pictures; what is predicted looks at none of their tokens."""
    model, row = model_and_row
    counts, draw = TargetCounts.of([row]), Draws(0, 0, [0])
    shown = shown_pictures(row, model.config.tokens_per_image, ALMOST_ALL, draw)
    batch = Batch.of(row, model.vision, CPU, shown)
    hidden, targets = batch_losses(model, batch, counts)
    plain, same = batch_losses(model, replace(batch, shown=None), counts)
    assert torch.equal(same, targets)
    assert not torch.allclose(hidden.visual, plain.visual, rtol=1e-4)
    features = batch.visual_features(model.vision)
    flat = features.flatten(0, 1).clone()
    flat[batch.visual_targets] = 0
    states = model(
        batch.token_ids,
        batch.positions,
        batch.intervals,
        flat.view_as(features),
        batch.visual_positions,
    )
    blind = model.predict_visual(states[batch.visual_rows])
    distance = 1 - (blind * targets.flatten(0, 1)).sum(-1).mean()
    torch.testing.assert_close(hidden.visual, distance, rtol=1e-4, atol=1e-5)


def test_two_processes_hide_the_same_pictures_as_one(folder):
    """And what is validated hides none: its losses are those of the weights alone."""
    one = tiny_config(folder, "instruct", steps=3, rows_per_step=2, visual_input_dropout=0.5)
    one.data.samples, one.data.validation = 40, 0.1
    train(one)
    two = replace(one, output=str(folder / "two"), parallel=ParallelConfig(shard=0))
    run_processes(2, train, two)
    names = ("text_loss", "visual_cosine", "gradient_norm", "validation_visual_cosine")
    alone, together = (
        [[line[name] for name in names if name in line] for line in read_metrics(Path(run.output))]
        for run in (one, two)
    )
    for line, expected in zip(together, alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("align", "training.visual_input_dropout: stage align does not use it"),
        ("instruct", "training.visual_input_dropout: pictures are hidden only for what"),
    ],
)
def test_it_is_refused_where_no_picture_is_learned(tmp_path, stage, message):
    config = tiny_config(tmp_path, stage, visual_input_dropout=0.5, visual_coefficient=0.0)
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match=message):
            check()
