"""What visual targets are learned by: 1 - cosine, the mean absolute difference, or nothing."""

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
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.batch import Batch
from metamorph.training.language_stage import batch_losses
from metamorph.training.loop import train
from metamorph.training.rules import check_plan, check_rules
from metamorph.training.trainable import choose_trainable
from tests.processes import run_processes
from tests.tiny_run import ALL_KINDS, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def start(folder):
    """A model that is trained as in stage instruct, and what encodes its conversations."""
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    choose_trainable(model, "instruct")
    return model, ChatEncoder(tokenizer, model.config.tokens_per_image)


def documents(encoder, count=6, kinds=ALL_KINDS):
    return [encoder.encode(make_task(0, i, "train", kinds).sample) for i in range(count)]


def losses_and_gradients(model, rows, visual_loss):
    """Visual loss and cosine distance of one optimizer step over these rows, and its gradients."""
    model.zero_grad()
    counts, sums = TargetCounts.of(rows), torch.zeros(2)
    for row in rows:
        batch = Batch.of(row, model.vision, CPU)
        losses, _ = batch_losses(model, batch, counts, visual_loss)
        losses.visual.backward()
        sums += torch.stack([losses.visual.detach(), losses.cosine_distance])
    trained = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return sums, {name: gradient.clone() for name, gradient in trained.items()}


def test_l1_is_the_mean_absolute_difference_of_what_the_head_says(start):
    """Not of its direction: twice as long an output is another loss, and the same cosine."""
    model, encoder = start
    row = pack_row(documents(encoder), 400, 0)
    batch, counts = Batch.of(row, model.vision, CPU), TargetCounts.of([row])
    features = batch.visual_features(model.vision)
    states = model(
        batch.token_ids, batch.positions, batch.intervals, features, batch.visual_positions
    )
    found = []
    for _ in range(2):
        predicted = model.vision_head(states[row.visual_rows])
        expected = (predicted - features.flatten(0, 1)[row.visual_targets]).abs().mean()
        losses, _ = batch_losses(model, batch, counts, "l1")
        torch.testing.assert_close(losses.visual, expected)
        by_cosine, _ = batch_losses(model, batch, counts)
        torch.testing.assert_close(losses.cosine_distance, by_cosine.visual.detach())
        assert torch.equal(by_cosine.cosine_distance, by_cosine.visual.detach())
        assert not losses.cosine_distance.requires_grad
        found.append((losses.visual.item(), losses.cosine_distance.item()))
        with torch.no_grad():
            for parameter in model.vision_head.linear_2.parameters():
                parameter *= 2
    assert found[1][0] > 1.1 * found[0][0] and found[1][1] == pytest.approx(found[0][1], abs=1e-5)


def test_splitting_a_step_into_rows_changes_neither_loss_nor_gradients(start):
    model, encoder = start
    docs = documents(encoder)
    rows = [pack_row(docs[:1], 90, 0), pack_row(docs[1:], 400, 0)]
    whole, expected = losses_and_gradients(model, [pack_row(docs, 400, 0)], "l1")
    parts, found = losses_and_gradients(model, rows, "l1")
    torch.testing.assert_close(parts, whole)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_without_a_target_it_is_zero_and_so_is_every_gradient(start):
    model, encoder = start
    row = pack_row(documents(encoder, 1, {"text": 1.0}), 64, 0)
    losses, gradients = losses_and_gradients(model, [row], "l1")
    assert losses.tolist() == [0, 0]
    assert {name for name in gradients if name.startswith("vision_head.")}
    assert all(not gradient.any() for gradient in gradients.values())


def l1_config(folder, **training):
    config = tiny_config(folder, "instruct", steps=8, visual_loss="l1", **training)
    config.data.samples, config.data.validation = 40, 0.1
    config.training.validate_every = config.training.checkpoint_every = 99  # at the end alone
    return config


def test_a_run_learns_by_it_and_says_so(folder, capsys):
    config = l1_config(folder, visual_coefficient=3.0)
    train(config)
    *lines, measured = read_metrics(folder / "instruct")
    assert lines[-1]["visual_l1"] < 0.9 * lines[0]["visual_l1"]
    assert lines[-1]["visual_cosine"] > lines[0]["visual_cosine"] + 0.1
    text, visual = measured["validation_text_loss"], measured["validation_visual_l1"]
    assert measured["validation_loss"] == pytest.approx(text + 3 * visual)
    assert -1 <= measured["validation_visual_cosine"] <= 1
    shown = capsys.readouterr().out
    assert f"L1 {visual:.3f}, cosine {measured['validation_visual_cosine']:.3f} (mean " in shown


def test_two_processes_learn_as_one(folder):
    one = l1_config(folder, rows_per_step=2)
    one.training.steps = 3
    train(one)
    two = replace(one, output=str(folder / "two"), parallel=ParallelConfig(shard=0))
    run_processes(2, train, two)
    names = ("text_loss", "visual_l1", "visual_cosine", "gradient_norm")
    names += ("validation_loss", "validation_visual_l1", "validation_visual_cosine")
    alone, together = (
        [[line[name] for name in names if name in line] for line in read_metrics(Path(run.output))]
        for run in (one, two)
    )
    for line, expected in zip(together, alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_coefficient_of_zero_is_no_visual_loss(folder):
    """Drawn pictures stay in context and are measured; the vision head stays as it was."""
    config = l1_config(folder, visual_coefficient=0.0)
    config.training.steps, config.training.visual_loss = 4, "cosine"
    before, _ = open_model(config)
    after = MetaMorph.from_pretrained(train(config)).state_dict()
    moved = {n for n, value in before.state_dict().items() if not torch.equal(value, after[n])}
    assert not [name for name in moved if name.startswith("vision_head.")]
    assert [name for name in moved if name.startswith("projector.")]
    *lines, measured = read_metrics(folder / "instruct")
    assert all("visual_cosine" in line and "visual_l1" not in line for line in lines)
    assert measured["validation_loss"] == measured["validation_text_loss"]
    assert "validation_visual_cosine" in measured and "validation_visual_l1" not in measured


@pytest.mark.parametrize(
    ("stage", "coefficient", "message"),
    [
        ("align", 0.0, r"training.visual_loss: stage align does not use it \(only instruct\)"),
        ("instruct", 0.0, "training.visual_loss: nothing is learned by l1 where .*coefficient is"),
    ],
)
def test_it_is_refused_where_nothing_is_learned_by_it(tmp_path, stage, coefficient, message):
    config = tiny_config(tmp_path, stage, visual_loss="l1", visual_coefficient=coefficient)
    for check in (lambda: check_rules(config, CPU), lambda: check_plan(config, 1)):
        with pytest.raises(UserError, match=message):
            check()
