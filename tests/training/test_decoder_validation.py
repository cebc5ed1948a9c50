"""Losses of a decoder on pictures that it does not train on, its best checkpoint, its sheets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from metamorph.config import DecoderConfig, ParallelConfig, RunConfig
from metamorph.data.opening import open_validation
from metamorph.decoder.kinds import open_decoder
from metamorph.errors import UserError
from metamorph.processes import process_group
from metamorph.training.decoder_stage import DecoderStage
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from tests.processes import run_processes
from tests.tiny_run import decoder_config, tiny_config, tiny_decoder, tiny_one_pass_config
from tests.training.test_validation import Losses, validated

CPU = torch.device("cpu")
LOSSES = {
    "diffusion": {"denoising_loss"},
    "rae": {"pixel_error", "feature_error"},
    "distill": {"distillation_loss"},
}


def config_of(folder: Path, kind: str = "diffusion", **training) -> RunConfig:
    """A quarter of 12 scenes is held out."""
    if kind == "rae":
        config = tiny_one_pass_config(folder)
        config.decoder = replace(config.decoder, adversarial_weight=0.1, ema_decay=0.9)
    else:
        config = decoder_config(folder)
        config.decoder.ema_decay = 0.9
    if kind == "distill":
        tiny_decoder().save_pretrained(folder / "teacher")
        teacher = str(folder / "teacher")
        config = replace(config, stage="distill", output=str(folder / "decoder"))
        config.decoder = DecoderConfig(
            teacher=teacher, teacher_steps=2, batch_size=4, sampling_steps=2
        )
    config.data.samples, config.data.validation = 12, 0.25
    config.training = replace(config.training, steps=2, learning_rate=1e-3, **training)
    return config


def held_out(stage: DecoderStage) -> list[PictureBatch]:
    """Each picture alone."""
    samples = map(stage.validation.pictures.sample, range(3))
    return [PictureBatch.of(sample.pictures) for sample in samples]


def test_the_loss_of_diffusion_is_the_mean_over_pictures_with_their_conditions(tmp_path, parts):
    """Of the averaged weights, which are saved; training would have dropped some conditions."""
    (tmp_path / "siglip").symlink_to(parts / "siglip")
    stage = DecoderStage(config_of(tmp_path), CPU)
    module, errors = stage.module, []
    for name, average in stage.average.averages.items():
        average += 0.1 * name.startswith("unet.conv_out")
    found = stage.validate()
    with stage.average.in_place(), torch.no_grad():
        for number, batch in enumerate(held_out(stage)):
            draw = Draws(stage.config.seed, 0, [number])
            draw(torch.rand, (1,))  # whether training would drop the condition
            noised = module.objective.noised(module.latents(batch, draw), draw)
            condition = module.adapter(batch.visual_features(module.vision))
            predicted = module.unet(noised.latents, noised.timesteps, condition).sample
            errors.append(F.mse_loss(predicted, noised.target).item())
    assert found["validation_loss"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["validation_denoising_loss"] == found["validation_loss"]
    assert (found["validation_pictures"], found["validation_skipped"]) == (3, 0)
    assert stage.validate() == found  # the same noise, and nothing moved


def test_the_loss_of_one_pass_is_without_noise_and_critic(tmp_path):
    """Features are looked at, too, where nothing is learnt from them."""
    config = config_of(tmp_path, "rae")
    config.decoder = replace(config.decoder, perceptual_weight=0.0, adversarial_weight=0.0)
    stage = DecoderStage(config, CPU)
    found, pixels, features = stage.validate(), [], []
    with torch.no_grad():
        for batch in held_out(stage):
            own = stage.module.vision(stage.module.vision.normalize(batch.encoder_pixels))
            drawn = stage.module.vit(own) / 2 + 0.5
            pixels.append((drawn - batch.pixels.permute(0, 3, 1, 2) / 255).abs().mean().item())
            again = stage.module.vision(stage.module.drawn_pixels(drawn))
            features.append(1 - F.cosine_similarity(again, own, dim=-1).mean().item())
    assert found["validation_pixel_error"] == pytest.approx(np.mean(pixels), rel=1e-5)
    assert found["validation_feature_error"] == pytest.approx(np.mean(features), rel=1e-4)
    assert found["validation_loss"] == found["validation_pixel_error"]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_run_that_is_validated_learns_the_same(tmp_path, parts, kind, capsys):
    if kind != "rae":
        (tmp_path / "siglip").symlink_to(parts / "siglip")
    often = config_of(tmp_path, kind, validate_every=1)
    never = replace(often, output=str(tmp_path / "never"))
    never.training = replace(often.training, validate_every=99)
    weights = [
        {path.name: load_file(path) for path in sorted(train(run).rglob("*.safetensors"))}
        for run in (often, never)
    ]
    for name, tensors in weights[0].items():
        assert all(torch.equal(weights[1][name][key], tensors[key]) for key in tensors)
    first, last = validated(Path(often.output))
    assert (first["step"], last["step"]) == (1, 2)
    losses = {f"validation_{name}" for name in LOSSES[kind]}
    counts = {"validation_pictures", "validation_skipped"}
    assert first.keys() - {"step"} == losses | counts | {"validation_loss"}
    assert validated(tmp_path / "never") == [last]  # at the end in any case
    assert first["validation_loss"] != last["validation_loss"]
    word = "pixels" if kind == "rae" else "loss"
    assert f"step 2, validation: {word} {last[min(losses, key=len)]:.3f}" in capsys.readouterr().out


def measured(*configs: RunConfig) -> list[dict[str, float]]:
    found = []
    with process_group(CPU):
        for config in configs:
            stage = DecoderStage(config, CPU)
            stage.validate()
            stage.forward_backward(0)  # nothing is in its way
            found.append(stage.validate())
    return found


def test_two_processes_measure_what_one_does_with_whole_copies_and_shards(tmp_path, parts):
    """Three pictures, one at a time: at the end one of two processes has none left. Of one picture
    beside a broken one the second has had none at all."""
    (tmp_path / "siglip").symlink_to(parts / "siglip")
    config = config_of(tmp_path)
    config.decoder.accumulate = 2
    held = folder_of_pictures(config, tmp_path, ["good"])
    one = replace(config, data=replace(config.data, validation=held))
    alone, alone_of_one = measured(config, one)
    assert (alone_of_one["validation_pictures"], alone_of_one["validation_skipped"]) == (1, 1)
    spread = [replace(config, parallel=ParallelConfig(shard=shard)) for shard in (1, 0)]
    first, second = run_processes(2, measured, *spread, replace(one, parallel=spread[1].parallel))
    assert first == second
    for found, expected in zip(first, (alone, alone, alone_of_one), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def folder_of_pictures(config: RunConfig, folder: Path, names: list[str]) -> str:
    """A mixture file of the first held-out picture by these names, behind them one that is none."""
    (folder / "held.yaml").write_text("a: {source: pictures, path: held}\n")
    (folder / "held").mkdir(exist_ok=True)
    [picture] = open_validation(replace(config.data, validation=0.5), 0).sample(0).images
    for name in names:
        picture.save(folder / "held" / f"{name}.png")
    (folder / "held" / "unusable.png").write_bytes(b"not a picture")
    return str(folder / "held.yaml")


def test_the_decoder_of_the_best_checkpoint_is_left_beside_the_last(tmp_path, parts, monkeypatch):
    """Of the phase that it was saved in; a shorter run leaves the same."""
    (tmp_path / "siglip").symlink_to(parts / "siglip")
    config = config_of(tmp_path, validate_every=1, schedule="logarithmic", warmup_steps=1)
    config.decoder.adapter_steps = 1
    losses = Losses(2.0, 3.0)
    monkeypatch.setattr(DecoderStage, "validate", lambda stage: losses(stage))
    last, best = train(config), Path(config.output) / "best" / "decoder"
    assert (Path(config.output) / "checkpoints" / "best").resolve().name == "step-000001"
    weights = [
        load_file(folder / part / "diffusion_pytorch_model.safetensors")
        for part in ("adapter", "unet")
        for folder in (best, last, Path(config.decoder.base))[: 2 + (part == "unet")]
    ]
    adapter, later, unet, moved, base = weights
    assert not any(torch.equal(adapter[name], later[name]) for name in adapter)
    assert all(torch.equal(unet[name], base[name]) for name in unet)
    assert not all(torch.equal(moved[name], base[name]) for name in unet)
    open_decoder(best)


def test_sheets_show_held_out_pictures(tmp_path):
    config = config_of(tmp_path, "rae")
    config.monitor.samples_every, config.monitor.samples = 2, 2
    stage = DecoderStage(config, CPU)
    source = open_validation(config.data, config.seed)
    for index, shown in enumerate(stage.sheet.originals):
        [picture] = source.sample(index).images
        assert shown.tobytes() == stage.module.square(picture).tobytes()
    assert len(stage.sheet.originals) == 2


def test_a_file_of_pictures_of_which_some_cannot_be_used(tmp_path):
    """Without a word about them; one look is at no more of them than is said."""
    config = config_of(tmp_path, "rae")
    config.data.validation = folder_of_pictures(config, tmp_path, [])
    with pytest.raises(
        UserError, match=r"data.validation: none of 1 samples can be used; .*unusable"
    ):
        DecoderStage(config, CPU).validate()
    config.data.validation = folder_of_pictures(config, tmp_path, ["0", "1", "2"])
    found = DecoderStage(config, CPU).validate()
    assert (found["validation_pictures"], found["validation_skipped"]) == (3, 1)
    config.training.validation_samples = 2
    found = DecoderStage(config, CPU).validate()
    assert found["validation_pictures"] + found["validation_skipped"] == 2


def test_limits_of_another_stage_are_refused(tmp_path, parts):
    with pytest.raises(UserError, match="validation_rows: stage decoder does not use it"):
        train(config_of(tmp_path, "rae", validation_rows=1))
    config = tiny_config(tmp_path, "instruct")
    config.data.validation, config.training.validation_samples = 0.1, 1
    with pytest.raises(UserError, match="validation_samples: stage instruct does not use it"):
        train(config)
    config = config_of(tmp_path, "rae", validation_samples=1)
    config.data.validation = ""
    with pytest.raises(UserError, match="validation_samples: it needs data.validation"):
        train(config)
