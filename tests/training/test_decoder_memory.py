"""The decoder stage in less memory: parts of a step, checkpointing, 8-bit moments, adapters."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from metamorph.config import RunConfig
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.errors import UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.decoder_stage import DecoderStage
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from metamorph.training.rules import check_rules
from tests.tiny_run import decoder_config

CPU = torch.device("cpu")


@pytest.fixture
def config(folder) -> RunConfig:
    return decoder_config(folder)


def gradients_of(config: RunConfig, step: int = 5) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step and its gradients, by the name of their parameter."""
    stage = DecoderStage(config, CPU)
    loss = stage.forward_backward(step)["denoising_loss"].item()
    named = stage.module.named_parameters()
    return loss, {name: p.grad for name, p in named if p.grad is not None}


def assert_same_step(config: RunConfig, other: RunConfig) -> None:
    (loss, expected), (found_loss, found) = gradients_of(config), gradients_of(other)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pieces", [2, 4])
def test_a_step_in_parts_is_the_same_step(config, pieces):
    other = replace(config, decoder=replace(config.decoder, accumulate=pieces))
    assert_same_step(config, other)


def test_what_is_drawn_for_a_picture_does_not_depend_on_its_company():
    every = Draws(seed=3, step=7, lanes=range(6))(torch.randn, (6, 4, 2))
    some = Draws(seed=3, step=7, lanes=[5, 2])(torch.randn, (2, 4, 2))
    assert torch.equal(some, every[[5, 2]])
    assert len({tuple(row.flatten().tolist()) for row in every}) == 6
    assert not torch.equal(Draws(3, 8, range(6))(torch.randn, (6, 4, 2)), every)
    assert not torch.equal(Draws(4, 7, range(6))(torch.randn, (6, 4, 2)), every)
    with pytest.raises(ValueError, match="expected numbers for 2 pictures, got 3"):
        Draws(3, 7, [0, 1])(torch.rand, (3,))


def bytes_kept(forward) -> int:
    """By the graph of a forward, for its backward."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        forward()
    return sum(sizes)


def test_checkpointing_keeps_less_and_computes_the_same(config):
    kept = {}
    for mode in ("none", "full"):
        config.training.activation_checkpointing = mode
        stage = DecoderStage(config, CPU)
        pictures, draw = PictureBatch.of(stage.lanes.next_pictures()), Draws(0, 0, range(4))
        kept[mode] = bytes_kept(partial(stage.module, pictures, draw))
    assert kept["full"] < 0.6 * kept["none"]
    without = replace(config.training, activation_checkpointing="none")
    assert_same_step(replace(config, training=without), config)


def test_compiled_blocks_agree_with_eager_ones(config):
    stage = DecoderStage(config, CPU)
    pictures, lanes = PictureBatch.of(stage.lanes.next_pictures()), range(4)
    expected = stage.module(pictures, Draws(0, 0, lanes))
    stage.module.blocks()[0].compile(fullgraph=True, backend="eager")  # one: it takes seconds
    torch.testing.assert_close(stage.module(pictures, Draws(0, 0, lanes)), expected)


def test_8_bit_moments_train_nearly_as_well(config):
    config.training.steps = 4
    train(config)
    other = replace(config, output=config.output + "8")
    other.training = replace(config.training, optimizer="adamw8bit")
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step: half a minute
        train(other)
    errors = [
        [line["denoising_loss"] for line in read_metrics(Path(run.output))]
        for run in (config, other)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.02) and errors[1] != errors[0]


def weights_of(decoder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(decoder / part / "diffusion_pytorch_model.safetensors")


def test_adapters_are_merged_into_what_is_saved(config):
    """Attention moves, the rest of the UNet stays; anybody can open it."""
    config.training.lora_rank = 2
    folder = train(config)
    before = weights_of(Path(config.decoder.base), "unet")
    after = weights_of(folder, "unet")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert moved == {name for name in before if name.endswith(layers)}
    UNet2DConditionModel.from_pretrained(folder / "unet")
    VisualDecoder.from_folder(folder)


def test_merged_adapters_predict_what_was_trained(config):
    config.training.lora_rank, config.training.lora_targets = 2, ["q", "o"]
    stage = DecoderStage(config, CPU)
    for name, parameter in stage.module.unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 4, 12)
    with torch.no_grad():
        expected = stage.module.unet(*inputs).sample
        folder = stage.save(Path(config.output))
        found = UNet2DConditionModel.from_pretrained(folder / "unet")(*inputs).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    moved = {
        name.split(".")[-2] for name, weight in weights_of(folder, "unet").items()
        if not torch.equal(weight, weights_of(Path(config.decoder.base), "unet")[name])
    }  # fmt: skip
    assert moved == {"to_q", "0"}


def test_adapters_with_dropout_resume_bit_for_bit(config):
    config.training.lora_rank, config.training.lora_dropout = 2, 0.3
    config.training.keep_checkpoints, config.training.checkpoint_every = 9, 2
    folder = train(config)
    whole = {part: weights_of(folder, part) for part in ("unet", "adapter")}
    (Path(config.output) / "checkpoints" / "step-000003").rename(Path(config.output) / "put away")
    resumed = train(replace(config, resume=True))
    for part, weights in whole.items():
        found = weights_of(resumed, part)
        assert all(torch.equal(found[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"activation_checkpointing": "selective"}, "activation_checkpointing: selective .* none"),
        ({"lora_rank": 2, "lora_targets": ["q", "up"]}, "lora_targets: .* has no layer up"),
        ({"lora_alpha": 2.0}, "lora_alpha: it needs training.lora_rank above 0"),
        ({"precision": "fp8"}, "precision: fp8 is for a language model"),
        ({"compile": True}, "compile: it needs a GPU, got cpu"),
        ({"weights": "bf16"}, "weights: stage decoder does not use it"),
    ],
)
def test_what_a_unet_cannot_do_is_named(config, training, message):
    config.training = replace(config.training, **training)
    with pytest.raises(UserError, match=f"^training.{message}"):
        check_rules(config, CPU)


def test_parts_share_the_pictures_of_a_process_evenly(config, monkeypatch):
    config.decoder.accumulate = 3
    with pytest.raises(UserError, match="accumulate: 4 images of a process .* by 3 parts"):
        check_rules(config, CPU)
    config.decoder.accumulate = 4
    check_rules(config, CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="accumulate: 2 images of a process .* by 4 parts"):
        check_rules(config, CPU)
