"""Training a decoder from cached features and latents: as it would learn from the pictures."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from metamorph.cli.command import main
from metamorph.config import DataConfig, RunConfig
from metamorph.data.encode import encode
from metamorph.data.mixture import parts_of
from metamorph.data.opening import open_source
from metamorph.data.skips import Skips
from metamorph.decoder.latents import VaeEncoder
from metamorph.errors import UserError
from metamorph.model.opening import open_encoder
from metamorph.model.siglip import SiglipEncoder
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.decoder_stage import DecoderStage, DecoderTrainer
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from tests.processes import run_processes
from tests.tiny_run import decoder_config, write_vision

CPU = torch.device("cpu")
PICTURES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base, an encoder, and pictures that are no squares."""
    folder = tmp_path_factory.mktemp("caches")
    write_vision(folder / "siglip")
    decoder_config(folder)
    (folder / "pictures").mkdir()
    chance = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = chance.integers(0, 256, (6, 9 + number, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 70)).save(folder / "pictures" / f"{number}.png")
    return folder


@pytest.fixture
def live(folder, tmp_path) -> RunConfig:
    """Four pictures a step, which meet whole in a batch of `encode`, too."""
    config = decoder_config(tmp_path)
    config.model.vision = str(folder / "siglip")
    config.decoder.base = str(folder / "base")
    config.data = DataConfig(source="pictures", path=str(folder / "pictures"), shuffle=False)
    return config


def cached(config: RunConfig, folder: Path, dtype: str = "fp32", **changes) -> RunConfig:
    """The same run from caches in `folder`, which are written if there are none."""
    encoder = VaeEncoder(config.decoder.base, config.decoder.fit, CPU)
    parts = parts_of(open_source(config.data, 0, words=False))
    encode(
        parts, open_encoder(config.model), folder, dtype, fit=config.decoder.fit, latents=encoder,
        batch_size=4, shard_rows=3,
    )  # fmt: skip
    config = replace(config, output=f"{config.output}-cached")
    config.data = replace(config.data, features=str(folder), **changes)
    config.decoder = replace(config.decoder, latents=str(folder / "latents"))
    return config


def losses_of(config: RunConfig, steps: int = 2) -> list[torch.Tensor]:
    stage = DecoderStage(config, CPU)
    return [stage.forward_backward(step)["denoising_loss"] for step in range(steps)]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_in_fp32_caches_change_no_bit(live, tmp_path, fit):
    live.decoder = replace(live.decoder, fit=fit, condition_dropout=0.0)
    assert losses_of(live) == losses_of(cached(live, tmp_path / "cache"))


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 1e-2), ("fp16", 1e-3), ("int8", 1e-2)])
def test_stored_shorter_they_change_no_more_than_their_rounding(live, tmp_path, dtype, bound):
    expected = losses_of(live)
    found = losses_of(cached(live, tmp_path / "cache", dtype))
    assert found != expected
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=bound, atol=0)


def test_neither_encoder_nor_vae_is_there_and_the_vae_is_saved_all_the_same(
    live, tmp_path, monkeypatch
):
    config = cached(live, tmp_path / "cache")

    def never(*_):
        raise AssertionError("it is cached")

    monkeypatch.setattr(AutoencoderKL, "encode", never)
    monkeypatch.setattr(SiglipEncoder, "forward", never)
    opened = DecoderTrainer(config)
    assert {name.partition(".")[0] for name in opened.state_dict()} == {"unet", "adapter"}
    saved = train(config) / "vae" / "diffusion_pytorch_model.safetensors"
    base = Path(config.decoder.base) / "vae" / "diffusion_pytorch_model.safetensors"
    before, after = load_file(base), load_file(saved)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_cache_of_the_two_is_enough(live, tmp_path):
    both = cached(live, tmp_path / "cache")
    features, latents = replace(both), replace(both)
    features.decoder = replace(both.decoder, latents="")
    latents.data = replace(both.data, features="")
    expected = torch.stack(losses_of(both))
    for config in (features, latents):
        torch.testing.assert_close(torch.stack(losses_of(config)), expected)


def test_the_share_of_dropped_conditions_and_that_they_are_never_adapted(live, tmp_path):
    config = cached(live, tmp_path / "cache")
    config.decoder.condition_dropout = 0.7
    trainer = DecoderTrainer(config)
    adapted = []
    trainer.adapter.register_forward_pre_hook(lambda _, given: adapted.append(len(given[0])))
    batch = PictureBatch(features=torch.randn(200, 4, 24), latents=torch.rand(200, 2, 4, 8, 8))
    with torch.no_grad():
        for step in range(2):
            trainer(batch, Draws(0, step, range(200)))
    assert sum(adapted) / 400 == pytest.approx(0.3, abs=0.08)


def refused(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        DecoderTrainer(config)
    return str(caught.value)


def test_caches_of_something_else_are_named(live, folder, tmp_path):
    config = cached(live, tmp_path / "cache")
    latents, features = Path(config.decoder.latents), config.data.features

    def changed(**decoder) -> RunConfig:
        return replace(config, decoder=replace(config.decoder, **decoder))

    assert refused(changed(latents="nowhere")).startswith("decoder.latents: nowhere")
    assert f"their latents, if they were encoded, are in {latents}" in refused(
        changed(latents=features)
    )
    config.data.features = ""
    assert "made square by squash (decoder.fit), and this run takes them by crop" in refused(
        changed(fit="crop")
    )
    config.data.features = features
    assert "data.features" in refused(changed(fit="crop"))  # of whole pictures, too
    base = tmp_path / "base"
    shutil.copytree(folder / "base", base, dirs_exist_ok=True)
    path = base / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 4}))
    assert "of 64 pixels a side, and decoder.base takes 32" in refused(changed(base=str(base)))
    shutil.copytree(folder / "base", base, dirs_exist_ok=True)
    vae = AutoencoderKL.from_pretrained(base / "vae")
    with torch.no_grad():
        vae.encoder.conv_in.weight += 0.1
    vae.save_pretrained(base / "vae")
    assert "made by another VAE than that of decoder.base" in refused(changed(base=str(base)))
    values = json.loads((latents / "index.json").read_text())
    (latents / "index.json").write_text(json.dumps(values | {"decoding": 1}))
    assert "latents of pictures as another version of metamorph read them" in refused(config)
    (latents / "index.json").write_text(json.dumps(values | {"side": -64}))
    assert "is no index of latents" in refused(config)
    (latents / "index.json").write_text(json.dumps(values))
    shard = latents / values["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert "shard-00000.safetensors is not what was written" in refused(config)


def test_a_picture_that_was_not_encoded_is_skipped_and_counted(live, folder, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(folder / "pictures", pictures)
    live.data.path = str(pictures)
    config = cached(live, tmp_path / "cache")
    for name, expected in (("features", "feature missing"), ("latents", "latents missing")):
        Image.new("RGB", (9, 9), "red").save(pictures / "0.png")
        changed = replace(config)
        if name == "latents":
            changed.data = replace(config.data, features="")
        stage = DecoderStage(changed, CPU)
        stage.forward_backward(0)
        skips: Skips = stage.lanes.skips()
        assert skips.by_cause()[expected][0] == 1 and "0.png" in skips.examples[expected]


def test_the_command_caches_both_and_adds_latents_to_features(live, folder, tmp_path, capsys):
    command = [
        "encode", str(folder / "pictures"), "--model.vision", live.model.vision, "--model.grid",
        "2", "--output", str(tmp_path / "cache"), "--device", "cpu", "--dtype", "fp16",
    ]  # fmt: skip
    assert main(command) == 0
    shards = sorted((tmp_path / "cache").glob("*.safetensors"))
    written = [path.stat().st_mtime_ns for path in shards]
    assert main([*command, "--latents", live.decoder.base]) == 0
    printed = capsys.readouterr().out
    assert f"holds {PICTURES} images as fp16" in printed
    assert f"cache/latents holds latents of {PICTURES} images as fp16" in printed
    assert [path.stat().st_mtime_ns for path in shards] == written
    (shard,) = (tmp_path / "cache" / "latents").glob("*.safetensors")
    assert load_file(shard)["std"].shape == (PICTURES, 4, 8, 8)
    verify = ["encode", str(folder / "pictures"), "--output", str(tmp_path / "cache"), "--verify"]
    assert main(verify) == 0
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(verify) == 2
    assert f"latents/{shard.name} of" in capsys.readouterr().err
    assert main([*command, "--latents"]) == 2
    assert "--latents: the run names no decoder.base" in capsys.readouterr().err
    assert main([*command, "--latents", live.decoder.base, "--decoder.fit", "crop"]) == 2
    assert "holds features of fit squash, not crop" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_with_workers_and_caches_train_as_one_without(live, tmp_path):
    train(live)
    config = cached(live, tmp_path / "cache", workers=1)
    run_processes(2, partial(train), config)

    def losses(run: RunConfig) -> list[float]:
        return [line["denoising_loss"] for line in read_metrics(Path(run.output))]

    assert losses(config) == pytest.approx(losses(live), rel=1e-5)
