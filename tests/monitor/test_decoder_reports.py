"""What a run of the decoder stage shows of itself: sheets of drawings, speed, operations."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from metamorph.config import RunConfig
from metamorph.costs.decoder_flops import UNET, VAE, diffusion_flops
from metamorph.costs.flops import ENCODER, Flops
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.monitor.metrics_file import read_metrics
from metamorph.monitor.telemetry import PictureTelemetry
from metamorph.training.decoder_stage import DecoderTrainer
from metamorph.training.loop import train
from tests.processes import run_processes
from tests.tiny_run import decoder_config

CPU = torch.device("cpu")


@pytest.fixture
def config(folder) -> RunConfig:
    return decoder_config(folder)


def unet_of(decoder: Path) -> dict[str, torch.Tensor]:
    return load_file(decoder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("adapters", [False, True])
def test_drawings_change_nothing_of_the_training(config, adapters):
    if adapters:
        config.training.lora_rank, config.training.lora_dropout = 2, 0.3
    expected = unet_of(train(config))
    seen = replace(config, output=config.output + "-seen")
    seen.monitor = replace(config.monitor, samples_every=2, samples=3)
    found = unet_of(train(seen))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    sheets = sorted((Path(seen.output) / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000002.png", "step-000003.png"]
    first, last = (Image.open(sheet).convert("RGB") for sheet in sheets)
    assert first.size == last.size and first.tobytes() != last.tobytes()


def test_shards_are_gathered_to_draw(config):
    config.monitor = replace(config.monitor, samples_every=3, samples=2)
    run_processes(2, train, config)
    sheet = Image.open(Path(config.output) / "samples" / "step-000003.png").convert("RGB")
    assert len(sheet.getcolors(maxcolors=2**24)) > 100


def test_a_log_line_has_speed_operations_and_memory(config):
    train(config)
    for line in read_metrics(Path(config.output)):
        assert line["images_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1
        assert line["memory_gigabytes"] > 0 and "mfu" not in line
        per_picture = line["teraflops"] / line["images_per_second"]
        assert per_picture == pytest.approx(DecoderTrainer(config).flops[UNET].total / 1e12)


def test_frozen_parts_are_told_apart_and_a_gpu_is_compared_with_its_peak(monkeypatch):
    monkeypatch.setattr("metamorph.monitor.telemetry.peak_teraflops", lambda device, _: 1e-2)
    flops = {UNET: Flops(2e9, 4e9), VAE: Flops(3e9), ENCODER: Flops(1e9)}
    telemetry = PictureTelemetry(flops, "bf16", CPU)
    monkeypatch.setattr("time.perf_counter", lambda: telemetry.meter.started + 2)
    telemetry.step_done(images=6, wait=0.5)
    meters = telemetry.read_meters()
    assert meters["images_per_second"] == 3 and meters["data_wait_share"] == 0.25
    assert meters["teraflops"] == pytest.approx(18e-3) == pytest.approx(1e-2 * meters["mfu"])
    assert meters["encoder_teraflops"] == pytest.approx(12e-3)
    assert meters["encoder_mfu"] == pytest.approx(1.2)


def test_operations_of_a_picture(config):
    """What checkpointing computes again does not count, nor weights that are not trained."""
    whole = DecoderTrainer(config).flops
    assert list(whole) == [UNET, VAE, ENCODER] and whole[VAE].backward == 0
    assert 1.5 * whole[UNET].forward < whole[UNET].backward <= 2 * whole[UNET].forward
    config.training.activation_checkpointing = "full"
    trainer = DecoderTrainer(config)
    assert trainer.flops == whole
    config.training.lora_rank = 1
    adapted = DecoderTrainer(config).flops
    assert adapted[UNET].forward > whole[UNET].forward
    assert adapted[UNET].backward < 0.8 * whole[UNET].backward

    trainer.unet.disable_gradient_checkpointing()
    wide = FeatureAdapter(24, 2 * 16, 12)  # twice as wide as that of the configuration
    config.decoder.condition_dropout = 0.75
    found = diffusion_flops(config, trainer.unet, wide, trainer.vae, trainer.vision)
    tokens, more = 4, 2 * 4 * 16 * (24 + 12)
    assert tokens == trainer.vision.tokens_per_image
    assert found[UNET].forward - whole[UNET].forward == more
    # Features take no gradient: the first product has none for its input.
    assert found[UNET].backward - whole[UNET].backward == more + 2 * tokens * 16 * 12
    assert found[ENCODER].forward == 0.5 * whole[ENCODER].forward
    config.data.features, config.decoder.latents = "features", "latents"
    cached = diffusion_flops(config, trainer.unet, wide, trainer.vae, trainer.vision)
    assert cached == {UNET: found[UNET]}
