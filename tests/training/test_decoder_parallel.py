"""Several processes train a decoder as one: whole copies or shards, and whoever stops."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metamorph.config import ParallelConfig, RunConfig
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.errors import Stopped, UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint
from metamorph.training.loop import train
from metamorph.training.rules import check_rules
from tests.processes import run_processes
from tests.tiny_run import decoder_config


@pytest.fixture
def config(folder) -> RunConfig:
    return decoder_config(folder)


def lines_of(config: RunConfig) -> list[list[float]]:
    names = ("denoising_loss", "gradient_norm", "gradient_norm_unet", "gradient_norm_adapter")
    return [[line[name] for name in names] for line in read_metrics(Path(config.output))]


def weights_of(config: RunConfig) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": weight
        for part in ("unet", "adapter", "vae")
        for name, weight in load_file(
            Path(config.output) / "decoder" / part / "diffusion_pytorch_model.safetensors"
        ).items()
    }


def assert_same_run(one: RunConfig, other: RunConfig) -> None:
    for found, expected in zip(lines_of(other), lines_of(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    found = weights_of(other)
    for name, expected in weights_of(one).items():  # AdamW moves by a sign what has no gradient
        torch.testing.assert_close(found[name], expected, rtol=1e-2, atol=2e-3)


def elsewhere(config: RunConfig, name: str, shard: int = 0) -> RunConfig:
    output = str(Path(config.output).parent / name)
    return replace(config, output=output, parallel=ParallelConfig(shard=shard))


def test_two_processes_train_as_one_with_whole_copies_or_shards(config):
    config.training.learning_rate = 1e-3
    train(config)
    shards, copies = elsewhere(config, "shards"), elsewhere(config, "copies", shard=1)
    copies.decoder = replace(config.decoder, accumulate=2)
    for other in (shards, copies):
        run_processes(2, train, other)
        assert_same_run(config, other)


def test_four_processes_of_two_shards_train_as_one(config):
    config.training.learning_rate = 1e-3
    train(config)
    other = elsewhere(config, "replicas", shard=2)
    run_processes(4, train, other)
    assert_same_run(config, other)
    VisualDecoder.from_folder(Path(other.output) / "decoder")


def test_shards_of_adapters_in_bf16_are_merged_and_saved(config):
    config.training.learning_rate = 1e-3
    config.training.lora_rank, config.training.precision = 2, "bf16"
    config.training.activation_checkpointing = "full"
    train(config)
    other = elsewhere(config, "shards")
    run_processes(2, train, other)
    for found, expected in zip(lines_of(other), lines_of(config), strict=True):
        assert found == pytest.approx(expected, rel=0.1)
    found, expected, base = weights_of(other), weights_of(config), Path(config.decoder.base)
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in before.items():
        is_adapted = ".attn" in name and not name.endswith("bias")
        assert torch.equal(found[f"unet.{name}"], weight) != is_adapted, name
        torch.testing.assert_close(
            found[f"unet.{name}"], expected[f"unet.{name}"], rtol=0, atol=0.01
        )


def stopped(config: RunConfig, step: int) -> str:
    """What a run says that all processes stop, of which the last one got SIGTERM while it saved its
    checkpoint number `step`."""
    honest, calls = Checkpoints.save, []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, *arguments)

    Checkpoints.save = interrupted
    try:
        train(config)
    except Stopped as stop:
        return str(stop).partition("after ")[2].partition(";")[0]
    finally:
        Checkpoints.save = honest
    raise AssertionError("it was not stopped")


def test_a_stopped_run_goes_on_bit_for_bit_and_in_one_process(config):
    config.training.checkpoint_every = 1
    whole, parts = elsewhere(config, "whole"), elsewhere(config, "parts")
    alone = elsewhere(config, "alone")
    run_processes(2, train, whole)
    # Sent while a checkpoint is saved, a signal is heeded after the next step.
    assert run_processes(2, stopped, parts, 1) == ["step 2 of 3"] * 2
    assert latest_checkpoint(Path(parts.output)).name == "step-000002"
    shutil.copytree(parts.output, alone.output)
    run_processes(2, train, replace(parts, resume=True))
    found = weights_of(parts)
    assert all(torch.equal(found[name], weight) for name, weight in weights_of(whole).items())
    assert lines_of(parts) == lines_of(whole)
    train(replace(alone, resume=True))
    assert_same_run(whole, alone)


def test_what_processes_cannot_share_is_named(config, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config.parallel = ParallelConfig(shard=3)
    with pytest.raises(UserError, match=r"parallel.shard: groups of 3 do not fit 2 processes"):
        check_rules(config, cpu)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="decoder.batch_size: 4 cannot be shared evenly by 3"):
        check_rules(config, cpu)
