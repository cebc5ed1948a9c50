"""Losses on samples that a run does not train on, and the best checkpoint."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from metamorph.data.opening import open_source, open_validation
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.errors import UserError
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.batch import Batch
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint
from metamorph.training.language_stage import LanguageStage, batch_losses
from metamorph.training.loop import Run, train
from tests.processes import run_processes
from tests.tiny_run import tiny_config

CPU = torch.device("cpu")
NAMES = ("loss", "text_loss", "visual_cosine", "mean_baseline_cosine")


def config_of(folder, steps=4, rows=2, **training):
    """A tenth of 40 scenes is held out."""
    config = tiny_config(folder, "instruct", steps=steps, rows_per_step=rows, **training)
    config.data.samples, config.data.validation = 40, 0.1
    config.training.validate_every = 2
    return config


def validated(folder) -> list[dict]:
    return [line for line in read_metrics(folder) if "validation_loss" in line]


def weights_of(config) -> dict:
    return MetaMorph.from_pretrained(config.output + "/model").state_dict()


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_is_measured_is_the_mean_over_all_held_out_targets(folder):
    """As one row of all of them says; after the first steps something is known of the mean."""
    config = config_of(folder)
    stage = LanguageStage(config, CPU)
    stage.observe(stage.forward_backward(0))
    found = stage.validate()

    documents = stage.validation.lanes.streams[0].documents
    whole = [documents.document(index) for index in range(4)]
    row = pack_row(whole, sum(map(len, whole)), stage.module.config.pad_id)
    with torch.no_grad():
        counts = TargetCounts.of([row])
        batch = Batch.of(row, stage.module.encoder, CPU)
        losses, targets = batch_losses(stage.module, batch, counts)
    text, cosine = losses.text.item(), 1 - losses.visual.item()
    expected = [text + 1 - cosine, text, cosine, stage.telemetry.baseline.score(targets).item()]
    assert [found[f"validation_{name}"] for name in NAMES] == pytest.approx(expected, rel=1e-4)
    assert found == stage.validate()  # the same samples, and nothing moved


def test_a_run_that_is_validated_learns_the_same(folder):
    """Also where dropout draws random numbers: measuring draws none, and drops nothing."""
    config = config_of(folder, lora_rank=2)
    config.training.lora_dropout = 0.5
    often, never = (replace(config, output=str(folder / name)) for name in ("often", "never"))
    train(replace(often, training=replace(often.training, validate_every=1)))
    train(replace(never, training=replace(never.training, validate_every=99)))
    assert equal(weights_of(often), weights_of(never))
    assert [line["step"] for line in validated(folder / "often")] == [1, 2, 3, 4]
    [last] = validated(folder / "never")  # at the end in any case
    assert last == validated(folder / "often")[-1]


def test_held_out_samples_are_not_trained_on_in_any_epoch(folder, monkeypatch):
    config = config_of(folder)
    config.training.steps, config.training.epochs = None, 2.0
    seen, record = [], Run.record

    def record_ids(run, *arguments):
        seen.extend(run.stage.last_samples())
        record(run, *arguments)

    monkeypatch.setattr(Run, "record", record_ids)
    train(config)
    source = open_validation(config.data, config.seed)
    held = {source.sample(index).id for index in range(len(source))}
    everything = open_source(config.data, config.seed)
    names = {everything.sample(index).id for index in range(40)}
    assert len(held) == 4 and set(seen) == names - held
    assert len(seen) == 2 * 36


def test_two_processes_measure_what_one_does_and_epochs_end_together(folder):
    config = config_of(folder, rows=4)
    config.training.steps, config.training.epochs = None, 1.0
    train(config)
    run_processes(2, train, replace(config, output=str(folder / "two")))
    one, two = (read_metrics(folder / name) for name in ("instruct", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line.get("epoch") for line in one] == [line.get("epoch") for line in two]
    measured = (
        [[line[f"validation_{name}"] for name in NAMES] for line in validated(folder / run)]
        for run in ("instruct", "two")
    )
    for alone, together in zip(*measured, strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    # What two have saved after measuring is whole: one goes on with it.
    train(replace(config, output=str(folder / "two"), resume=True))


def test_a_signal_while_the_best_model_is_saved_loses_nothing(folder, monkeypatch):
    honest = LanguageStage.save

    def interrupted(stage, place):
        if place.name == "best":
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(stage, place)

    monkeypatch.setattr(LanguageStage, "save", interrupted)
    losses = Losses(1.0, 2.0)
    monkeypatch.setattr(LanguageStage, "validate", lambda stage: losses(stage))
    config = config_of(folder, steps=2)
    config.training.validate_every = 1
    train(config)
    MetaMorph.from_pretrained(folder / "instruct" / "best" / "model")


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_model_of_the_best_checkpoint_is_left_beside_the_last(folder, monkeypatch, lora_rank):
    config = config_of(folder, steps=3, lora_rank=lora_rank)
    config.training.validate_every = 1
    short = replace(
        config, output=str(folder / "short"), training=replace(config.training, steps=1)
    )
    short.training.warmup_ratio = config.training.warmup_ratio = 1 / 3
    losses = Losses(2.0, 3.0, 3.0)
    monkeypatch.setattr(LanguageStage, "validate", lambda stage: losses(stage))
    last = train(config)
    best = MetaMorph.from_pretrained(folder / "instruct" / "best" / "model").state_dict()
    assert not equal(best, MetaMorph.from_pretrained(last).state_dict())
    assert (folder / "instruct" / "best" / "adapter").exists() == bool(lora_rank)
    monkeypatch.setattr(LanguageStage, "validate", lambda stage: {})
    assert equal(best, MetaMorph.from_pretrained(train(short)).state_dict())


@pytest.mark.parametrize(("rows", "used"), [(0, 4), (1, 2), (99, 4)])
def test_a_limit_of_rows(folder, rows, used):
    """Rounded up to those that a step shares; here a row holds a sample or two."""
    config = config_of(folder, validation_rows=rows)
    config.data.row_length = 64
    stage = LanguageStage(config, CPU)
    stage.validate()
    assert (stage.validation.lanes.used() >= used) and stage.validation.lanes.used() <= 4


class Losses:
    """In the place of a stage's `validate`: what it is told, one after the other."""

    def __init__(self, *losses: float):
        self.losses = iter(losses)

    def __call__(self, stage) -> dict[str, float]:
        loss = next(self.losses)
        return {"validation_loss": loss, "validation_text_loss": loss}


def test_the_best_checkpoint_is_kept_by_name(folder, monkeypatch, capsys):
    """Beside the newest; it is saved where none was due."""
    losses = Losses(3.0, 1.0, 2.0, float("nan"), 1.5)
    monkeypatch.setattr(LanguageStage, "validate", lambda stage: losses(stage))
    config = config_of(folder, steps=5, keep_checkpoints=1)
    config.training.validate_every, config.training.checkpoint_every = 1, 4
    train(config)
    checkpoints = folder / "instruct" / "checkpoints"
    assert (checkpoints / "best").resolve().name == "step-000002"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "best", "step-000002", "step-000005",
    ]  # fmt: skip
    assert latest_checkpoint(folder / "instruct").name == "step-000005"
    told = capsys.readouterr().out
    assert "step 2, validation: text 1.000, the best so far" in told
    assert "step 3, validation: text 2.000\n" in told


def test_a_resumed_run_knows_the_best_of_before(folder, monkeypatch):
    config = config_of(folder, steps=4, keep_checkpoints=1)
    config.training.validate_every, config.training.checkpoint_every = 1, 3
    for losses, resume in ((Losses(3.0, 1.0, 2.0), False), (Losses(1.5), True)):
        monkeypatch.setattr(LanguageStage, "validate", lambda stage, told=losses: told(stage))
        if resume:
            train(replace(config, resume=True))
            break
        with pytest.raises(RuntimeError), monkeypatch.context() as patch:
            patch.setattr(Run, "draw", lambda run, step: None)
            save = Checkpoints.save

            def save_and_fail(self, step, *arguments, save=save):
                save(self, step, *arguments)
                if step == 3:
                    raise RuntimeError

            patch.setattr(Checkpoints, "save", save_and_fail)
            train(config)
    checkpoints = folder / "instruct" / "checkpoints"
    assert (checkpoints / "best").resolve().name == "step-000002"
    assert [line["validation_loss"] for line in validated(folder / "instruct")] == [3, 1, 2, 1.5]


def test_what_somebody_has_called_best_is_moved_aside(folder):
    config = config_of(folder, steps=1)
    mine = folder / "instruct" / "checkpoints" / "best"
    mine.mkdir(parents=True)
    (mine / "note.txt").write_text("mine")
    checkpoints = Checkpoints(folder / "instruct", keep=1)
    stage = LanguageStage(config, CPU)
    with checkpoints:
        checkpoints.save(1, stage.module, stage.optimizer, {"best": {"step": 1}})
    assert mine.is_symlink() and mine.resolve().name == "step-000001"
    assert (mine.parent / "best.aside" / "note.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validate_every": 3}, "training.validate_every: it needs data.validation"),
        ({"validation_rows": 3}, "training.validation_rows: it needs data.validation"),
    ],
)
def test_keys_of_validation_need_samples(folder, change, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(folder, "instruct", **change))


def test_no_share_can_be_held_out_of_a_source_that_is_a_program(folder):
    config = config_of(folder)
    with pytest.raises(UserError, match="data.validation: a share can only be held out of"):
        train(config, source=open_source(config.data, 0))


def test_samples_of_which_none_can_be_used_are_named(folder):
    config = config_of(folder)
    config.data.validation = str(folder / "held.yaml")
    (folder / "held.yaml").write_text("a: {path: held.jsonl}\n")
    (folder / "held.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(UserError, match="data.validation: none of 1 samples can be used; .*conver"):
        train(config)
    assert latest_checkpoint(folder / "instruct").name == "step-000002"  # nothing is lost


def test_samples_of_which_some_can_be_used_are_counted(folder):
    config = config_of(folder)
    config.data.validation = str(folder / "held.yaml")
    turns = '[{"from": "human", "value": "Say it."}, {"from": "gpt", "value": "circle"}]'
    (folder / "held.yaml").write_text("a: {path: held.jsonl}\n")
    good = f'{{"id": "b", "conversations": {turns}}}\n'
    (folder / "held.jsonl").write_text('{"id": "a"}\n' + 2 * good)
    found = LanguageStage(config, CPU).validate()
    assert (found["validation_samples"], found["validation_skipped"]) == (2, 1)
    assert "validation_visual_cosine" not in found
