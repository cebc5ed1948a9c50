"""The diffusion decoder: adapter, training, sampling, and diffusers' folder layout."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from metamorph.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, TrainingConfig
from metamorph.data.opening import open_source
from metamorph.data.pictures import Pictures, PictureStream
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.errors import Stopped, UserError
from metamorph.model.opening import assemble
from metamorph.model.outline import outline
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.decoder_stage import DecoderTrainer
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from metamorph.training.picture_batch import PictureBatch
from metamorph.training.rules import check_rules
from tests.interruption import interrupt_in_step
from tests.tiny_run import GRID, tiny_diffusion, write_language, write_vision


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random diffusers base and SigLIP tower, as small as they get."""
    folder = tmp_path_factory.mktemp("base")
    write_vision(folder / "siglip")
    vae, unet, scheduler = tiny_diffusion()
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def config(base, tmp_path) -> RunConfig:
    return RunConfig(
        stage="decoder",
        output=str(tmp_path / "decoder"),
        model=ModelConfig(vision=str(base / "siglip"), grid=GRID),
        data=DataConfig(source="toy_scenes", kinds={"draw": 1.0}),
        training=TrainingConfig(steps=6, learning_rate=1e-3, log_every=1, checkpoint_every=3),
        decoder=DecoderConfig(
            base=str(base), batch_size=4, condition_dropout=0.5, sampling_steps=3,
            adapter_hidden=16,
        ),
        device="cpu",
    )  # fmt: skip


def test_adapter_pads_conditions_with_zeros():
    adapter = FeatureAdapter(6, 10, 8, condition_length=7)
    conditions = adapter(torch.randn(2, 4, 6))
    assert conditions.shape == (2, 7, 8)
    assert conditions[:, 4:].abs().max() == 0 and conditions[:, :4].abs().min() > 0
    assert FeatureAdapter(6, 10, 8)(torch.randn(2, 4, 6)).shape == (2, 4, 8)


def pictures(count: int, trainer: DecoderTrainer) -> PictureBatch:
    source = open_source(DataConfig(source="toy_scenes", kinds={"draw": 1.0}), 0, words=False)
    samples = Pictures(source, trainer.encoder_square, trainer.square)
    stream = PictureStream(samples.sample, len(samples))
    return PictureBatch.of([next(stream) for _ in range(count)])


def test_dropped_conditions_are_zero_and_their_pictures_are_not_encoded(config, monkeypatch):
    trainer = DecoderTrainer(config)
    encoded = []
    encode = trainer.vision.forward
    monkeypatch.setattr(trainer.vision, "forward", lambda p: encoded.append(p) or encode(p))
    kept = torch.tensor([True, False, True, False])
    four = pictures(4, trainer)
    conditions = trainer.conditions(four, kept)
    assert torch.equal(encoded[0], trainer.vision.normalize(four.encoder_pixels[[0, 2]]))
    assert conditions.shape == (4, 4, 12)
    assert (conditions.abs().amax((1, 2)) > 0).tolist() == kept.tolist()
    third = PictureBatch(four.encoder_pixels[2:3], four.pixels[2:3])
    alone = trainer.conditions(third, torch.tensor([True]))
    torch.testing.assert_close(conditions[2:3], alone)
    assert trainer.conditions(four, torch.zeros(4, dtype=torch.bool)).abs().max() == 0


def test_features_have_noise_where_training_asks_for_it(config, monkeypatch):
    """Drawn last, so that all else of a step is as without; validation and drawings have none."""
    assert DecoderTrainer(config).feature_noise == 0.0
    noisy = DecoderTrainer(replace(config, decoder=replace(config.decoder, feature_noise=0.7)))
    seen, adapt = [], noisy.adapter.forward
    monkeypatch.setattr(noisy.adapter, "forward", lambda x: seen.append(x) or adapt(x))
    four = pictures(4, noisy)
    noisy(four, Draws(0, 0, range(4)))
    draw = Draws(0, 0, range(4))
    kept = draw(torch.rand, (4,)) >= 0.5
    noisy.objective.noised(noisy.latents(four, draw), draw)
    noise = draw(torch.randn, (4, 4, 24)) / 24**0.5 * 0.7 * draw(torch.rand, (4, 1, 1))
    features = four.visual_features(noisy.vision)
    expected = torch.nn.functional.normalize(features + noise, dim=-1)
    assert 0 < kept.sum() < 4
    torch.testing.assert_close(seen.pop(), expected[kept])
    noisy.eval()(four, Draws(0, 0, range(4)))
    torch.testing.assert_close(seen.pop(), features)


def test_the_loss_is_the_error_of_the_predicted_noise(config, monkeypatch):
    trainer = DecoderTrainer(config)

    class Perfect:
        def __init__(self, sample):
            self.sample = sample

    def knows_the_noise(noisy, timesteps, conditions):
        alphas = trainer.noise_scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return Perfect((noisy - alphas.sqrt() * clean) / (1 - alphas).sqrt())

    sampled = trainer.latents

    def remember(images, draw):
        nonlocal clean
        clean = sampled(images, draw)
        return clean

    clean = None
    monkeypatch.setattr(trainer, "latents", remember)
    monkeypatch.setattr(trainer.unet, "forward", knows_the_noise)
    loss, logged = trainer(pictures(4, trainer), Draws(0, 0, range(4)))
    assert loss.item() == logged["denoising_loss"].item() == pytest.approx(0, abs=1e-4)


def test_training_moves_unet_and_adapter_and_writes_a_diffusers_folder(config):
    folder = train(config)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {
        "unet", "vae", "scheduler", "adapter",
    }  # fmt: skip
    base = Path(config.decoder.base)
    # Other tools open the parts without our code.
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert unet.config.cross_attention_dim == 12
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config.algorithm_type == "dpmsolver++"
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(base / "unet" / name), load_file(folder / "unet" / name)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    before, after = load_file(base / "vae" / name), load_file(folder / "vae" / name)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [line["step"] for line in read_metrics(Path(config.output))] == list(range(1, 7))


def test_sampling_is_repeatable_and_follows_its_condition(config):
    decoder = VisualDecoder.from_folder(train(config))
    decoder.set_progress_bar_config(disable=True)
    features = torch.nn.functional.normalize(torch.randn(2, 4, 24), dim=-1)

    def draw(values, **options):
        generators = [torch.Generator().manual_seed(5) for _ in values]
        return [image.tobytes() for image in decoder.draw(values, generator=generators, **options)]

    assert draw(features) == draw(features)
    assert decoder.draw(features)[0].size == (64, 64)
    assert draw(features) != draw(-features)
    assert draw(features, guidance_scale=1) != draw(features, guidance_scale=6)
    # With a guidance of 0 only the empty condition speaks.
    assert draw(features, guidance_scale=0) == draw(-features, guidance_scale=0)
    with pytest.raises(ValueError, match="24"):
        decoder.draw(features[..., :5])
    with pytest.raises(ValueError, match="generator: expected one for each of 2 pictures, got 1"):
        decoder.draw(features, generator=[torch.Generator()])
    with pytest.raises(UserError, match="pixels are NaN"):
        decoder.draw(features * torch.nan)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted_bit_for_bit(config, tmp_path, monkeypatch, workers):
    def trained(folder):
        return [
            load_file(path)
            for path in sorted(folder.rglob("*.safetensors"))
            if path.parent.name in ("unet", "adapter")
        ]

    whole = trained(train(replace(config, output=str(tmp_path / "whole"))))
    config.data.workers = workers
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 4, signal.SIGINT)
        with pytest.raises(Stopped, match="step 4 of 6"):
            train(config)
    resumed = trained(train(replace(config, resume=True)))
    assert len(whole) == len(resumed) == 2
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_missing_parts_are_named(config):
    with pytest.raises(UserError, match="decoder.base"):
        DecoderTrainer(replace(config, decoder=replace(config.decoder, base="nowhere")))
    with pytest.raises(UserError, match="model.vision"):
        DecoderTrainer(replace(config, model=replace(config.model, vision="")))


def test_a_model_folder_brings_its_own_grid(config, base, tmp_path):
    """The decoder must see as many tokens as the language model predicts."""
    write_language(tmp_path / "llama")
    model, tokenizer = assemble(tmp_path / "llama", base / "siglip", grid=3)
    model.save_pretrained(tmp_path / "model", tokenizer)
    start = ModelConfig(folder=str(tmp_path / "model"))
    assert DecoderTrainer(replace(config, model=start)).vision.tokens_per_image == 9
    asked = replace(start, grid=2)
    with pytest.raises(UserError, match="^model.grid: got 2, but model.folder, .* with 3 x 3"):
        DecoderTrainer(replace(config, model=asked))
    with pytest.raises(UserError, match="^model.grid: got 2, but model.folder"):
        outline(asked)


def test_a_base_that_predicts_something_else_is_refused(config, base, tmp_path):
    shutil.copytree(base, tmp_path / "other")
    path = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"sample"'))
    other = replace(config.decoder, base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="prediction_type is 'sample'"):
        DecoderTrainer(replace(config, decoder=other))
    (tmp_path / "other" / "unet" / "config.json").write_text("{oops")
    with pytest.raises(UserError, match="unet/config.json: not readable as JSON"):
        DecoderTrainer(replace(config, decoder=other))


def test_default_steps_that_the_sampler_cannot_take_are_refused_at_once(config):
    config.decoder.sampling_steps = 1000
    with pytest.raises(UserError, match=r"^decoder.sampling_steps: 1000 steps of this sampler"):
        DecoderTrainer(config)
    config.decoder.sampler = "ddim"
    DecoderTrainer(config)


def test_processes_must_share_the_pictures_evenly(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="decoder.batch_size: 4 cannot be shared evenly by 3"):
        check_rules(config, torch.device("cpu"))


def test_an_epoch_of_pictures_ends_with_the_batch_that_holds_the_last(config):
    """Ten samples of a picture each, four a step."""
    config.data.samples = 10
    config.training.steps, config.training.epochs = None, 1.0
    train(config)
    lines = read_metrics(Path(config.output))
    assert [line["epoch"] for line in lines] == pytest.approx([0.4, 0.8, 1.0])
