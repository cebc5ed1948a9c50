"""Training with parts and an optimizer of other libraries, and what it says of missing ones."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from metamorph.config import ModelConfig
from metamorph.errors import Stopped, UserError
from metamorph.model import opening
from metamorph.model.opening import open_model
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training import language_stage
from metamorph.training.loop import train
from metamorph.training.optimizer import make_optimizer
from metamorph.training.trainable import choose_trainable
from tests import fake_libraries
from tests.tiny_run import tiny_config


@pytest.fixture(autouse=True)
def no_libraries(monkeypatch):
    fake_libraries.remove_all(monkeypatch)


@pytest.fixture
def apex(monkeypatch):
    fake_libraries.install(monkeypatch, "apex")
    fake_libraries.pretend_gpu(monkeypatch)


@pytest.fixture
def transformer_engine(monkeypatch):
    fake_libraries.install(monkeypatch, "transformer-engine")
    fake_libraries.pretend_gpu(monkeypatch)


ADAMS = pytest.mark.parametrize(
    ("optimizer", "stand_in"),
    [("apex", "FusedAdam"), ("transformer_engine", "TransformerEngineAdam")],
)


def weights_of(folder) -> dict:
    return MetaMorph.from_pretrained(folder).state_dict()


def losses_of(folder) -> list[float]:
    lines = read_metrics(folder.parent)
    return [line[name] for line in lines for name in ("text_loss", "visual_cosine")]


@pytest.mark.parametrize(
    ("section", "key", "name"),
    [
        ("model", "attention", "flash_attn"),
        ("model", "attention", "flash_attn_4"),
        ("model", "attention", "xformers"),
        ("model", "rms_norm", "apex"),
        ("model", "rms_norm", "liger"),
        ("model", "rotary", "liger"),
        ("model", "swiglu", "liger"),
        ("training", "optimizer", "apex"),
        ("training", "optimizer", "transformer_engine"),
    ],
)
def test_a_missing_library_stops_a_run_before_it_starts(folder, monkeypatch, section, key, name):
    config = tiny_config(folder, "instruct")
    setattr(getattr(config, section), key, name)
    monkeypatch.setattr(opening, "assemble", None)  # not even a model is opened
    message = rf"{section}\.{key}: {name} cannot be used here \(.*: not installed\)"
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (folder / "instruct").exists()


@pytest.mark.parametrize(
    ("library", "key"), [("liger-kernel", "rms_norm: liger"), ("apex", "optimizer: apex")]
)
def test_a_library_for_gpus_is_no_use_on_a_cpu(folder, monkeypatch, library, key):
    fake_libraries.install(monkeypatch, library)
    config = tiny_config(folder, "instruct")
    config.model.rms_norm = "liger" if library == "liger-kernel" else "torch"
    config.training.optimizer = "apex" if library == "apex" else "torch"
    message = rf"{key} cannot be used here \({library}: no kernels for cpu devices\)"
    with pytest.raises(UserError, match=message):
        train(config)


def test_a_run_with_every_library_agrees_with_the_default(folder, monkeypatch, apex):
    for library in ("flash-attn", "liger-kernel"):
        fake_libraries.install(monkeypatch, library)
    config = tiny_config(folder, "instruct", steps=3)
    default = train(replace(config, output=str(folder / "default")))
    start = replace(
        config.model, attention="flash_attn", rms_norm="liger", rotary="liger", swiglu="liger"
    )
    fused = train(replace(config, model=start))
    assert len(set(fake_libraries.CALLS)) == 4
    assert weights_of(fused).keys() == weights_of(default).keys()
    assert losses_of(fused) == pytest.approx(losses_of(default), rel=1e-3)


@ADAMS
def test_another_adam_gets_the_groups_of_adamw(
    folder, apex, transformer_engine, optimizer, stand_in
):
    config = tiny_config(folder, "instruct", weight_decay=0.1, beta2=0.95)
    model, _ = open_model(config)
    choose_trainable(model, "instruct")
    expected = make_optimizer(model, config)
    config.training.optimizer = optimizer
    found = make_optimizer(model, config)
    assert type(found).__name__ == stand_in
    for mine, theirs in zip(found.param_groups, expected.param_groups, strict=True):
        assert all(a is b for a, b in zip(mine["params"], theirs["params"], strict=True))
        for key in ("lr", "betas", "eps", "weight_decay"):
            assert mine[key] == theirs[key]


@ADAMS
def test_a_run_with_another_adam_agrees_with_adamw(
    folder, apex, transformer_engine, optimizer, stand_in
):
    config = tiny_config(folder, "instruct", steps=4, weight_decay=0.1)
    adamw = train(replace(config, output=str(folder / "adamw")))
    config.training.optimizer = optimizer
    other = train(config)
    assert stand_in in fake_libraries.CALLS
    assert losses_of(other) == pytest.approx(losses_of(adamw), rel=1e-3)


@ADAMS
def test_a_run_with_another_adam_resumes_exactly(
    folder, monkeypatch, apex, transformer_engine, optimizer, stand_in
):
    config = tiny_config(folder, "instruct", steps=6, optimizer=optimizer)
    whole = weights_of(train(replace(config, output=str(folder / "whole"))))
    take_rows, taken = language_stage.TargetCounts.of, []

    def stop_in_fourth_step(rows):
        taken.append(rows)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_rows(rows)

    with monkeypatch.context() as patch:
        patch.setattr(language_stage.TargetCounts, "of", stop_in_fourth_step)
        with pytest.raises(Stopped, match="step 4 of 6"):
            train(config)
    resumed = weights_of(train(replace(config, resume=True)))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    adamw = replace(config, resume=True, training=replace(config.training, optimizer="torch"))
    with pytest.raises(UserError, match=f"training.optimizer is 'torch' now and was '{optimizer}'"):
        train(adamw)


def test_the_decoder_stage_does_not_ignore_apex(tmp_path):
    config = tiny_config(tmp_path, "decoder", optimizer="apex")
    with pytest.raises(UserError, match="training.optimizer: apex cannot be used here"):
        train(replace(config, model=ModelConfig()))


def test_an_adam_that_knows_nothing_of_sharded_weights_is_too_old(folder, monkeypatch):
    fake_libraries.install(monkeypatch, "transformer-engine", leave_out="DTensor")
    fake_libraries.pretend_gpu(monkeypatch)
    message = r"transformer-engine: this version has no .*\.fused_adam\.DTensor"
    with pytest.raises(UserError, match=message):
        train(tiny_config(folder, "instruct", optimizer="transformer_engine"))
