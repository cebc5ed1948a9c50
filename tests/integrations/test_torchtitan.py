"""torchtitan's trainer does with a run file what ours does: losses, weights, and going on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metamorph import libraries
from metamorph.config import ParallelConfig
from metamorph.config.reading import flat, save_config
from metamorph.errors import UserError
from metamorph.integrations.torchtitan.rules import UNUSED, check_run
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from tests.integrations.torchtitan_on_cpu import run_torchtitan
from tests.processes import run_processes
from tests.tiny_run import tiny_config, write_language, write_vision

ABSENCE = libraries.PROBES["torchtitan"]("cpu")
installed = pytest.mark.skipif(ABSENCE is not None, reason=f"torchtitan: {ABSENCE}")


@pytest.fixture
def folder(tmp_path):
    write_language(tmp_path / "llama")
    write_vision(tmp_path / "siglip")
    return tmp_path


def our_losses(config) -> list[float]:
    """What is minimised, of each step of a run by our own trainer."""
    train(config)
    lines = read_metrics(Path(config.output))
    return [line["text_loss"] + 1 - line["visual_cosine"] for line in lines]


def torchtitan_losses(config, name: str, processes: int, *options: str) -> list[float]:
    """The same of the run `name` by that many processes of torchtitan, which all say the same."""
    path = Path(f"{config.output}-{name}.yaml")
    save_config(replace(config, output=f"{config.output}-{name}"), path)
    losses, *others = run_processes(processes, run_torchtitan, path, *options)
    assert all(other == losses for other in others)
    return losses


def assert_same_weights(config, name: str) -> None:
    ours, found = (
        MetaMorph.from_pretrained(f"{output}/model")
        for output in (config.output, f"{config.output}-{name}")
    )
    assert found.encoder.width == ours.encoder.width
    expected = ours.state_dict()
    for key, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4)


@installed
@pytest.mark.slow
def test_fifty_steps_as_our_own_trainer(folder):
    config = tiny_config(
        folder, "instruct", steps=50, rows_per_step=2, weight_decay=0.1,
        projector_rate_factor=0.5,
    )  # fmt: skip
    ours = our_losses(config)
    assert ours[-1] < 0.3 * ours[0]
    for processes in (1, 2):
        name = f"{processes}"
        assert torchtitan_losses(config, name, processes) == pytest.approx(ours, abs=1e-3)
        assert_same_weights(config, name)


@installed
@pytest.mark.slow
def test_another_number_of_processes_goes_on(folder):
    config = tiny_config(folder, "instruct", steps=6, rows_per_step=4)
    config.parallel = ParallelConfig(shard=2)
    ours = our_losses(replace(config, parallel=ParallelConfig()))
    stop = ("--training.steps", "3", "--lr_scheduler.total_steps", "6")
    first = torchtitan_losses(config, "again", 4, *stop)  # two copies of two shards each
    config.parallel = ParallelConfig()
    rest = torchtitan_losses(config, "again", 1)
    assert first + rest == pytest.approx(ours, abs=1e-3)
    assert_same_weights(config, "again")


@installed
def test_what_torchtitan_cannot_spread_is_refused(folder):
    config = tiny_config(folder, "instruct", steps=1, rows_per_step=2)
    with pytest.raises(AssertionError, match="parallelism: tp is 2, expected 1"):
        torchtitan_losses(config, "tp", 2, "--parallelism.tensor_parallel_degree", "2",
                          "--parallelism.data_parallel_shard_degree", "1")  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "training", "reason"),
    [
        ("align", {}, "stage: torchtitan runs language and instruct, got align"),
        ("instruct", {"schedule": "logarithmic"}, "training.schedule: torchtitan's trainer does"),
        ("instruct", {"lora_rank": 4}, "training.lora_rank: .* got 4; leave it out"),
        ("instruct", {"keep_checkpoints": 1}, "training.keep_checkpoints: .* 2 at least, got 1"),
        ("instruct", {"precision": "fp8"}, "training.precision: expected fp32 or bf16"),
        ("language", {"visual_coefficient": 0.5}, "training.visual_coefficient: got 0.5"),
    ],
)
def test_what_torchtitans_trainer_does_not_do_is_refused(tmp_path, stage, training, reason):
    config = tiny_config(tmp_path, stage, steps=1, **training)
    with pytest.raises(UserError, match=reason):
        check_run(config)


def test_epochs_are_refused(tmp_path):
    config = tiny_config(tmp_path, "instruct", steps=None, epochs=1.0)
    config.data.samples = 10
    with pytest.raises(UserError, match="training.epochs: torchtitan's trainer does not use it"):
        check_run(config)


def test_every_key_is_followed_or_refused(tmp_path):
    """A new one has to be put on one of the two lists. Those of model and data mean the same."""
    followed = {
        "stage", "output", "seed", "device", "training.steps", "training.rows_per_step",
        "training.learning_rate", "training.warmup_ratio", "training.warmup_steps",
        "training.weight_decay", "training.beta1", "training.beta2", "training.gradient_clip",
        "training.projector_rate_factor", "training.vision_head_rate_factor",
        "training.language_rate_factor", "training.visual_coefficient", "training.visual_loss",
        "training.precision", "training.activation_checkpointing", "training.compile",
        "training.checkpoint_every", "training.keep_checkpoints",
        "training.log_every", "parallel.shard", "monitor.tensorboard", "monitor.wandb",
        "parallel.gpus",  # which is for plans alone
    }  # fmt: skip
    keys = flat(tiny_config(tmp_path, "instruct"))
    elsewhere = {key for key in keys if key.startswith(("model.", "data.", "decoder."))}
    assert followed | elsewhere | set(UNUSED) == set(keys)
    assert not followed & set(UNUSED)
