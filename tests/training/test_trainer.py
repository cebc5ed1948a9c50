"""The trainer: what each stage moves, how losses are normalised, exact resume."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from metamorph.data.conversation import ChatEncoder
from metamorph.data.packing import pack_row
from metamorph.data.toy_tasks import make_task
from metamorph.errors import Stopped, UserError
from metamorph.model.unified import MetaMorph
from metamorph.training import trainer as trainer_module
from metamorph.training.loss import TargetCounts
from metamorph.training.run_folder import read_metrics
from metamorph.training.trainer import choose_trained, open_model, row_losses, train
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")


def weights_of(folder) -> dict:
    return MetaMorph.from_pretrained(folder).state_dict()


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def rows_moved(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).any(1).nonzero().flatten().tolist()


@pytest.fixture
def start(folder):
    """The weights that every run from ``tiny_config`` starts from, and the two image rows."""
    model, _ = open_model(tiny_config(folder, "instruct"))
    ids = sorted((model.config.image_start_id, model.config.image_end_id))
    return {name: value.clone() for name, value in model.state_dict().items()}, ids


def test_align_moves_the_projector_and_two_token_rows_only(folder, start):
    before, image_ids = start
    after = weights_of(train(tiny_config(folder, "align", weight_decay=0.1)))
    names = moved(before, after)
    tables = {"language.model.embed_tokens.weight", "language.lm_head.weight"}
    assert {name for name in names if not name.startswith("projector.")} == tables
    assert sum(name.startswith("projector.") for name in names) == 4
    for table in tables:
        assert rows_moved(before[table], after[table]) == image_ids


def test_language_moves_the_language_model_only(folder, start):
    before, _ = start
    config = tiny_config(folder, "language")
    config.data.kinds = {"text": 1.0}
    names = moved(before, weights_of(train(config)))
    assert names and all(name.startswith("language.") for name in names)


def test_instruct_moves_everything_but_the_encoder(folder, start):
    before, _ = start
    names = moved(before, weights_of(train(tiny_config(folder, "instruct"))))
    assert names == {name for name in before if not name.startswith("vision.")}


def test_both_losses_fall(folder):
    train(tiny_config(folder, "instruct", steps=40))
    metrics = read_metrics(folder / "instruct")
    assert metrics[-1]["text_loss"] < 0.7 * metrics[0]["text_loss"]
    assert metrics[-1]["visual_cosine"] > metrics[0]["visual_cosine"] + 0.2
    assert all(0.8 < line["packing_efficiency"] <= 1 for line in metrics)
    assert [line["step"] for line in metrics] == list(range(1, 41))


def documents(model, tokenizer, count=8):
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
    kinds = {"question": 1.0, "draw": 1.0, "edit": 1.0, "text": 1.0}
    return [encoder.encode(make_task(0, i, "train", kinds).sample) for i in range(count)]


def gradients(model, rows) -> tuple[float, dict]:
    """Total loss and gradients of one optimizer step over these rows."""
    model.zero_grad()
    counts = TargetCounts.of(rows)
    total = 0.0
    for row in rows:
        losses, _ = row_losses(model, row, counts, CPU)
        loss = losses.text + losses.visual
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_splitting_a_step_into_rows_changes_nothing(folder):
    """Both losses are means over the targets of the whole step, however they are packed."""
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    choose_trained(model, "instruct")
    docs = documents(model, tokenizer)
    one_row = [pack_row(docs, 400, 0)]
    uneven = [pack_row(docs[:1], 90, 0), pack_row(docs[1:6], 300, 0), pack_row(docs[6:], 200, 0)]
    assert len({len(row.text_rows) for row in uneven}) == 3
    whole, expected = gradients(model, one_row)
    parts, found = gradients(model, uneven)
    assert parts == pytest.approx(whole, rel=1e-5)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_a_row_without_images_has_a_visual_loss_of_zero_and_finite_gradients(folder):
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    choose_trained(model, "instruct")
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
    text = encoder.encode(make_task(0, 0, "train", {"text": 1.0}).sample)
    row = pack_row([text], 64, 0)
    losses, targets = row_losses(model, row, TargetCounts.of([row]), CPU)
    assert losses.visual.item() == 0.0 and len(targets) == 0
    _, found = gradients(model, [row])
    # Every trained parameter has a gradient, so collectives stay the same on every rank.
    assert all(gradient.isfinite().all() for gradient in found.values())
    silent = {name for name in found if name.startswith(("projector.", "vision_head."))}
    assert len(silent) == 8
    assert all(found[name].abs().max() == 0 for name in silent)


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_resumed_equals_uninterrupted_bit_for_bit(folder, stage, monkeypatch):
    config = tiny_config(folder, stage, steps=8)
    whole = weights_of(train(replace(config, output=str(folder / "whole"))))

    interrupted = replace(config, output=str(folder / "interrupted"))
    take_rows, taken = trainer_module.TargetCounts.of, []

    def stop_in_fifth_step(rows):
        taken.append(rows)
        if len(taken) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_rows(rows)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.TargetCounts, "of", stop_in_fifth_step)
        with pytest.raises(Stopped, match="step 5 of 8"):
            train(interrupted)
    resumed = weights_of(train(replace(interrupted, resume=True)))
    assert not moved(whole, resumed)

    def deterministic(name):
        drop = ("tokens_per_second",)
        lines = read_metrics(folder / name)
        return [{k: v for k, v in line.items() if k not in drop} for line in lines]

    assert deterministic("whole") == deterministic("interrupted")


def test_a_killed_run_resumes_from_its_last_checkpoint(folder):
    """Lines and steps after the checkpoint are done again, not twice."""
    config = tiny_config(folder, "instruct", steps=6)
    expected = weights_of(train(config))
    (folder / "instruct" / "checkpoints" / ".step-000006.incomplete").mkdir()
    resumed = weights_of(train(replace(config, resume=True)))
    assert not moved(expected, resumed)
    assert [line["step"] for line in read_metrics(folder / "instruct")] == list(range(1, 7))


def test_a_run_folder_is_not_replaced_unasked(folder):
    config = tiny_config(folder, "align", steps=1)
    train(config)
    with pytest.raises(UserError, match="exists.*--resume.*--overwrite"):
        train(config)
    train(replace(config, overwrite=True))
    other = folder / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="does not look like a run folder"):
        train(replace(config, output=str(other), overwrite=True))
    assert (other / "thesis.txt").exists()


def test_resume_refuses_a_checkpoint_of_another_shape(folder):
    config = tiny_config(folder, "align", steps=4)
    train(config)
    with pytest.raises(UserError, match="trained in only one"):
        train(replace(config, stage="instruct", resume=True))
    with pytest.raises(UserError, match="no checkpoint"):
        train(replace(config, output=str(folder / "new"), resume=True))


def test_a_non_finite_loss_stops_the_run_and_names_samples(folder):
    config = tiny_config(folder, "instruct", steps=6)
    config.training.learning_rate = 1e30
    with pytest.raises(UserError, match="not finite.*toy-train"):
        train(config)


def test_skips_are_printed_by_cause(folder, capsys):
    config = tiny_config(folder, "instruct", steps=2)
    config.data.row_length = 31
    train(config)
    assert "longer than a row" in capsys.readouterr().out
    last = json.loads((folder / "instruct" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped"]["longer than a row"] > 0


def test_a_run_needs_something_to_start_from(folder):
    config = tiny_config(folder, "align")
    config.model.language = ""
    with pytest.raises(UserError, match="model.folder"):
        train(config)
    config = replace(tiny_config(folder, "align"), device="cuda:99", output=str(folder / "x"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="CUDA is not available"):
            train(config)
