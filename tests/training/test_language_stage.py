"""The trainer: what each stage moves, how losses are normalised, exact resume."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from metamorph.config import ModelConfig
from metamorph.config.reading import load_config
from metamorph.data.conversation import ChatEncoder
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.data.toy.tasks import make_task
from metamorph.devices import resolve_device
from metamorph.errors import Stopped, UserError
from metamorph.model.opening import open_model
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training import language_stage
from metamorph.training.batch import Batch
from metamorph.training.checkpoint import latest_checkpoint, load_checkpoint
from metamorph.training.language_stage import LanguageStage, batch_losses
from metamorph.training.loop import train
from metamorph.training.optimizer import make_optimizer
from metamorph.training.trainable import choose_trainable
from tests.data.chat_styles import CHATML
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
    """The weights that every run from `tiny_config` starts from, and the two image rows."""
    model, _ = open_model(tiny_config(folder, "instruct"))
    ids = sorted((model.config.image_start_id, model.config.image_end_id))
    return {name: value.clone() for name, value in model.state_dict().items()}, ids


def test_align_moves_the_projector_and_the_input_rows_of_the_image_tokens_only(folder, start):
    before, image_ids = start
    after = weights_of(train(tiny_config(folder, "align", weight_decay=0.1)))
    names = moved(before, after)
    table = "language.model.embed_tokens.weight"
    assert {name for name in names if not name.startswith("projector.")} == {table}
    assert sum(name.startswith("projector.") for name in names) == 4
    assert rows_moved(before[table], after[table]) == image_ids


def test_align_with_tied_embeddings_moves_rows_that_are_both(folder):
    """An input row is then the output row as well; the others stay even so."""
    config = tiny_config(folder, "align", weight_decay=0.1)
    model, tokenizer = open_model(config)
    tied = MetaMorph(
        replace(model.config, language=replace(model.config.language, tie_word_embeddings=True)),
        vision=model.vision,
    )
    tied.save_pretrained(folder / "tied", tokenizer)
    config.model = ModelConfig(folder=str(folder / "tied"))
    before, after = weights_of(folder / "tied"), weights_of(train(config))
    names = moved(before, after)
    table = "language.model.embed_tokens.weight"
    assert {name for name in names if not name.startswith("projector.")} == {table}
    ids = sorted((model.config.image_start_id, model.config.image_end_id))
    assert rows_moved(before[table], after[table]) == ids


def test_align_trains_the_rows_of_tokens_that_the_chat_format_added(folder):
    """The whole way: their rows are new, align moves them, and the folder keeps the format."""
    config = tiny_config(folder, "align")
    path = folder / "chatml.jinja"
    path.write_text(CHATML)
    config.model.chat_template = str(path)
    model, tokenizer = open_model(config)
    names = ["<image_start>", "<image_end>", "<|im_start|>", "<|im_end|>"]
    added = tokenizer.convert_tokens_to_ids(names)
    assert model.config.added_ids == added
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = train(config)
    after = weights_of(trained)
    table = "language.model.embed_tokens.weight"
    assert moved(before, after) - {f"projector.linear_{i}.{p}" for i in (1, 2)
                                   for p in ("weight", "bias")} == {table}  # fmt: skip
    assert rows_moved(before[table], after[table]) == added
    instruct = replace(config, stage="instruct", model=ModelConfig(folder=str(trained)))
    again, tokenizer = open_model(instruct)
    assert tokenizer.chat_template == CHATML and again.config.added_ids == added
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in again.config.eos_ids


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
        losses, _ = batch_losses(model, Batch.of(row, model.vision, CPU), counts)
        loss = losses.text + losses.visual
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_splitting_a_step_into_rows_changes_nothing(folder):
    """Both losses are means over the targets of the whole step, however they are packed."""
    model, tokenizer = open_model(tiny_config(folder, "instruct"))
    choose_trainable(model, "instruct")
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
    choose_trainable(model, "instruct")
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
    text = encoder.encode(make_task(0, 0, "train", {"text": 1.0}).sample)
    row = pack_row([text], 64, 0)
    batch = Batch.of(row, model.vision, CPU)
    losses, targets = batch_losses(model, batch, TargetCounts.of([row]))
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
    config.training.visual_input_dropout = 0.5 if stage == "instruct" else 0.0  # by chance
    config.training.log_every = 3  # the stop falls between two log lines
    whole = weights_of(train(replace(config, output=str(folder / "whole"))))

    interrupted = replace(config, output=str(folder / "interrupted"))
    take_rows, taken = language_stage.TargetCounts.of, []

    def stop_in_fifth_step(rows):
        taken.append(rows)
        if len(taken) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_rows(rows)

    with monkeypatch.context() as patch:
        patch.setattr(language_stage.TargetCounts, "of", stop_in_fifth_step)
        with pytest.raises(Stopped, match="step 5 of 8"):
            train(interrupted)
    resumed = weights_of(train(replace(interrupted, resume=True)))
    assert not moved(whole, resumed)

    def deterministic(name):
        timed = ("_per_second", "teraflops", "_share", "memory_gigabytes")
        lines = read_metrics(folder / name)
        return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines]

    assert deterministic("whole") == deterministic("interrupted")


def test_a_killed_run_resumes_from_its_last_checkpoint(folder):
    """Lines and steps after the checkpoint are done again, not twice; half-written files go."""
    config = tiny_config(folder, "instruct", steps=6)
    expected = weights_of(train(config))
    run = folder / "instruct"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    (run / "checkpoints" / "step-000006").rename(run / "checkpoints" / ".step-000006.incomplete")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "text_lo')
    resumed = weights_of(train(replace(config, resume=True)))
    assert not moved(expected, resumed)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 7))


def test_a_damaged_checkpoint_is_named(folder):
    config = tiny_config(folder, "align", steps=3)
    train(config)
    checkpoint = folder / "align" / "checkpoints" / "step-000003"
    for name in ("__0_0.distcp", ".metadata", "state.json", "complete.json"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="step-000003 is damaged"):
            train(replace(config, resume=True))
        (checkpoint / name).write_bytes(whole)


def test_the_latest_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    for step in (5, 999_999, 1_000_000):
        path = tmp_path / "checkpoints" / f"step-{step:06d}"
        path.mkdir(parents=True)
        (path / "complete.json").write_text("{}")
    (tmp_path / "checkpoints" / "step-2000000").mkdir()  # without the marker it is none
    assert latest_checkpoint(tmp_path).name == "step-1000000"


def test_a_run_folder_is_not_replaced_unasked(folder):
    config = tiny_config(folder, "align", steps=1)
    train(config)
    with pytest.raises(UserError, match="exists.*--resume.*--overwrite"):
        train(config)
    train(replace(config, overwrite=True))
    other = folder / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    (other / "config.yaml").write_text("title: thesis\n")
    with pytest.raises(UserError, match="does not look like a run folder"):
        train(replace(config, output=str(other), overwrite=True))
    assert (other / "thesis.txt").exists()


def test_overwriting_needs_a_run_that_can_start(folder, monkeypatch):
    """A typo beside --overwrite must not cost the old run."""
    config = tiny_config(folder, "align", steps=1)
    kept = train(config) / "model.safetensors"
    again = replace(config, overwrite=True)
    with pytest.raises(UserError, match="no-such"):
        train(replace(again, model=ModelConfig(folder=str(folder / "no-such"))))
    with pytest.raises(UserError, match="holds model.folder"):
        train(replace(again, model=ModelConfig(folder=str(kept.parent))))
    held_out = replace(config.data, validation=str(kept.parent / "held.yaml"))
    with pytest.raises(UserError, match="holds data.validation"):
        train(replace(again, data=held_out))
    with monkeypatch.context() as patch:
        patch.chdir(kept.parent)
        with pytest.raises(UserError, match="working directory"):
            train(again)
    assert kept.exists()


def test_a_config_from_a_run_folder_replaces_nothing(folder):
    config = tiny_config(folder, "align", steps=1)
    train(config)
    train(replace(config, overwrite=True))
    saved = load_config(folder / "align" / "config.yaml")
    assert not saved.overwrite and not saved.resume


def test_resume_refuses_a_checkpoint_of_another_shape(folder):
    config = tiny_config(folder, "align", steps=4)
    train(config)
    checkpoint = latest_checkpoint(folder / "align")
    model, _ = open_model(config)
    choose_trainable(model, "instruct")
    with pytest.raises(UserError, match="trained in only one"):
        load_checkpoint(checkpoint, model, make_optimizer(model, config))
    choose_trainable(model, "align")
    model.projector.linear_1.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(UserError, match=r"projector.linear_1.weight has shape .*\(3, 3\)"):
        load_checkpoint(checkpoint, model, make_optimizer(model, config))
    with pytest.raises(UserError, match="no checkpoint"):
        train(replace(config, output=str(folder / "new"), resume=True))


@pytest.mark.parametrize(
    ("key", "change"),
    [("seed", {"seed": 1}), ("stage", {"stage": "instruct"})],
)
def test_a_resumed_run_must_be_the_same_run(folder, key, change):
    config = tiny_config(folder, "align", steps=4)
    train(config)
    with pytest.raises(UserError, match=f"resume: {key} is"):
        train(replace(config, resume=True, **change))
    longer = replace(config.training, steps=9)
    with pytest.raises(UserError, match="resume: training.steps is 9 now and was 4"):
        train(replace(config, resume=True, training=longer))
    train(replace(config, resume=True, training=replace(config.training, keep_checkpoints=1)))


def test_half_precision_weights_are_trained_whole(folder):
    """A bf16 Llama would lose small updates: the optimizer moves fp32 weights."""
    config = tiny_config(folder, "instruct", steps=1)
    model, tokenizer = open_model(config)
    model.bfloat16().save_pretrained(folder / "half", tokenizer)
    stage = LanguageStage(
        replace(config, model=ModelConfig(folder=str(folder / "half"))), torch.device("cpu")
    )
    assert {parameter.dtype for parameter in stage.module.parameters()} == {torch.float32}


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


@pytest.mark.parametrize("name", ["cuda:99", "meta", "mps", "tpu", "gpu one"])
def test_devices_that_are_not_there(name):
    with pytest.raises(UserError, match="device"):
        resolve_device(name)
    assert resolve_device("cpu").type == "cpu"
