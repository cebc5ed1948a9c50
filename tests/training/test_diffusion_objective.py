"""What a diffusion decoder learns, against its formulas; and bases of other shapes, which learn it.

Formulas are written with a = sqrt(product of 1 - beta) and s = sqrt(1 - a^2): a noised latent is
a x + s e of clean latents x and noise e, its velocity a e - s x, its SNR a^2 / s^2.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from metamorph.config import DecoderConfig, RunConfig
from metamorph.decoder.parts import load_base
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import SAMPLERS, sampler
from metamorph.errors import UserError
from metamorph.training.decoder_stage import DecoderTrainer
from metamorph.training.diffusion_objective import DiffusionObjective, training_schedule
from metamorph.training.draws import Draws
from metamorph.training.loop import train
from tests.decoder.bases import (
    STABLE_DIFFUSION_BETAS,
    write_sana,
    write_stable_diffusion_1,
    write_stable_diffusion_2_v,
    write_stable_diffusion_3,
)
from tests.tiny_run import tiny_config, write_vision

SHAPE = (6, 4, 3, 3)  # of latents
PREDICTIONS = ["epsilon", "v_prediction"]


def schedule(prediction: str, zero_terminal_snr: bool = False) -> DDPMScheduler:
    keys = ("beta_start", "beta_end", "beta_schedule")
    base = DDPMScheduler(**{key: STABLE_DIFFUSION_BETAS[key] for key in keys})
    return training_schedule(base, prediction, zero_terminal_snr)


def signals(zero_terminal_snr: bool = False) -> np.ndarray:
    """a at each of Stable Diffusion's 1000 timesteps, in float64."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    a = np.sqrt(np.cumprod(1 - betas))
    return (a - a[-1]) * a[0] / (a[0] - a[-1]) if zero_terminal_snr else a


def noised(objective: DiffusionObjective, timesteps: list[int], seed: int = 0):
    """Random latents and noise, and what the objective makes of them at these timesteps."""
    generator = torch.Generator().manual_seed(seed)
    clean, drawn = torch.randn(SHAPE, generator=generator), []

    def draw(distribution, shape):
        if isinstance(distribution, partial):
            assert shape == SHAPE[:1] and distribution.args == (1000,)
            return torch.tensor(timesteps)
        drawn.append(torch.randn(shape, generator=generator))
        return drawn[-1]

    found = objective.noised(clean, draw)
    return SimpleNamespace(clean=clean, drawn=drawn, found=found)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_latents_velocity_and_their_weights(zero_terminal_snr):
    timesteps = [0, 1, 250, 500, 998, 999]
    case = noised(
        DiffusionObjective(schedule("v_prediction", zero_terminal_snr), min_snr_gamma=5.0),
        timesteps,
    )
    signal = torch.tensor(signals(zero_terminal_snr)[timesteps])
    a, s = signal[:, None, None, None], (1 - signal**2).sqrt()[:, None, None, None]
    x, [e] = case.clean.double(), case.drawn
    close = partial(torch.testing.assert_close, check_dtype=False, rtol=1e-4, atol=1e-4)
    close(case.found.latents, a * x + s * e)
    close(case.found.target, a * e - s * x)
    # min(SNR, 5) / (SNR + 1), which is min(a^2, 5 s^2) as a^2 + s^2 = 1
    close(case.found.weights, torch.minimum(signal**2, 5 * (1 - signal**2)))
    if zero_terminal_snr:
        assert torch.equal(case.found.latents[-1], e[-1])
        close(case.found.target[-1], -x[-1])


def test_predicted_noise_weighs_as_much_as_its_clamped_ratio():
    timesteps = [0, 1, 250, 500, 998, 999]
    case = noised(DiffusionObjective(schedule("epsilon"), min_snr_gamma=5.0), timesteps)
    assert torch.equal(case.found.target, case.drawn[0])
    snr = signals()[timesteps] ** 2 / (1 - signals()[timesteps] ** 2)
    assert case.found.weights.numpy() == pytest.approx(np.minimum(snr, 5) / snr, rel=1e-3)
    assert case.found.weights[0] < 0.01 and case.found.weights[-1] == 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_those_of_one_error_of_clean_latents(prediction):
    """However a UNet says what the clean latents are, an error of them counts the same."""
    objective = DiffusionObjective(schedule(prediction), min_snr_gamma=5.0)
    case = noised(objective, [400] * 6)
    a = signals()[400]
    s = (1 - a**2) ** 0.5
    wrong = torch.randn(SHAPE)  # of clean latents; noised ones are as they are
    off = {"epsilon": -a / s * wrong, "v_prediction": -wrong / s}[prediction]
    loss = objective.loss(case.found.target + off, case.found)
    expected = min(a**2 / s**2, 5.0) * wrong.square().mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_without_weights_the_loss_is_the_mean_squared_error():
    objective = DiffusionObjective(schedule("epsilon"))
    case = noised(objective, [0, 100, 300, 500, 700, 999])
    off = torch.randn(SHAPE)
    assert objective.loss(case.drawn[0] + off, case.found).item() == pytest.approx(
        off.square().mean().item(), rel=1e-5
    )


def test_a_noise_offset_shifts_each_channel_in_what_is_shown_and_predicted():
    case = noised(DiffusionObjective(schedule("epsilon"), noise_offset=0.25), [500] * 6)
    noise, shifts = case.drawn
    assert shifts.shape == (6, 4, 1, 1)
    torch.testing.assert_close(case.found.target, noise + 0.25 * shifts)
    a = signals()[500]
    expected = a * case.clean + (1 - a**2) ** 0.5 * (noise + 0.25 * shifts)
    torch.testing.assert_close(case.found.latents, expected, rtol=1e-4, atol=1e-4)


def test_latents_of_a_bf16_vae_are_noised_in_fp32():
    drawn = partial(torch.full, fill_value=1)
    found = DiffusionObjective(schedule("v_prediction")).noised(
        torch.ones(2, 1, 1, 1, dtype=torch.bfloat16), lambda distribution, shape: drawn(shape)
    )
    assert {found.latents.dtype, found.target.dtype, found.weights.dtype} == {torch.float32}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_sampler_knows_what_was_trained(zero_terminal_snr, name):
    scheduler = sampler(name, schedule("v_prediction", zero_terminal_snr).config)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr == zero_terminal_snr
    scheduler.set_timesteps(4)
    if zero_terminal_snr:
        assert scheduler.timesteps[0] == 999  # which is noise alone, as what a drawing begins with
    np.testing.assert_allclose(
        scheduler.alphas_cumprod[:-1], signals(zero_terminal_snr)[:-1] ** 2, rtol=1e-3
    )


@pytest.mark.parametrize("by_base", [False, True])
def test_noise_alone_is_no_place_to_predict_noise(by_base):
    base = DDPMScheduler(rescale_betas_zero_snr=by_base)
    expected = "decoder.base's schedule" if by_base else "decoder.zero_terminal_snr"
    with pytest.raises(UserError, match=f"decoder.prediction: {expected} makes the last timestep"):
        training_schedule(base, "base", not by_base)
    assert training_schedule(base, "v_prediction", False).config.rescale_betas_zero_snr == by_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    write_vision(folder / "siglip")
    write_stable_diffusion_1(folder / "1.5")
    write_stable_diffusion_2_v(folder / "2.1-v")
    return folder


def config_of(bases, name: str, tmp_path, **decoder) -> RunConfig:
    config = tiny_config(bases, "decoder", steps=1)
    config.output = str(tmp_path / "run")
    config.data.kinds = {"draw": 1.0}
    config.decoder = DecoderConfig(
        base=str(bases / name), batch_size=2, condition_dropout=0.5, sampling_steps=2,
        adapter_hidden=16, **decoder,
    )  # fmt: skip
    return config


@pytest.mark.parametrize(
    ("name", "options", "prediction", "is_zero"),
    [
        ("1.5", {}, "epsilon", False),
        ("2.1-v", {}, "v_prediction", False),
        ("1.5", {"prediction": "v_prediction", "zero_terminal_snr": True, "min_snr_gamma": 5.0,
                 "noise_offset": 0.1}, "v_prediction", True),
    ],
)  # fmt: skip
def test_bases_learn_a_step_and_draw(bases, tmp_path, name, options, prediction, is_zero):
    folder = train(config_of(bases, name, tmp_path, **options))
    saved = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    assert saved.config.prediction_type == prediction
    assert saved.config.rescale_betas_zero_snr == is_zero
    decoder = VisualDecoder.from_folder(folder)
    decoder.set_progress_bar_config(disable=True)
    side = 8 * decoder.unet.config.sample_size
    [picture] = decoder.draw(torch.nn.functional.normalize(torch.randn(1, 4, 24), dim=-1))
    assert picture.size == (side, side)


def test_the_loss_of_a_step_is_that_of_its_formula(bases, tmp_path, monkeypatch):
    """A UNet that says 0 everywhere: the loss is the weighted mean square of the velocities."""
    config = config_of(bases, "2.1-v", tmp_path, min_snr_gamma=5.0)
    trainer = DecoderTrainer(config)
    clean = torch.randn(2, 4, 12, 12)
    monkeypatch.setattr(trainer, "latents", lambda pictures, draw: clean)
    monkeypatch.setattr(trainer, "conditions", lambda *_: torch.zeros(2, 4, 16))
    monkeypatch.setattr(
        trainer.unet, "forward",
        lambda noisy, timesteps, conditions: SimpleNamespace(sample=torch.zeros_like(noisy)),
    )  # fmt: skip
    loss, logged = trainer([None, None], Draws(0, 3, range(2)))
    draw = Draws(0, 3, range(2))
    draw(torch.rand, (2,))  # which conditions are dropped
    noise = draw(torch.randn, (2, 4, 12, 12)).double()
    a = torch.tensor(signals()[draw(partial(torch.randint, 1000), (2,))])
    velocity = a[:, None, None, None] * noise - (1 - a**2).sqrt()[:, None, None, None] * clean
    weights = torch.minimum(a**2, 5 * (1 - a**2))
    expected = (weights * velocity.square().mean((1, 2, 3))).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert logged == {"denoising_loss": loss}


@pytest.mark.parametrize(
    ("write", "kind"),
    [(write_stable_diffusion_3, "SD3Transformer2DModel"), (write_sana, "SanaTransformer2DModel")],
)
def test_flow_matching_transformers_are_refused_in_a_sentence(tmp_path, write, kind):
    with pytest.raises(UserError) as caught:
        load_base(write(tmp_path / "base"))
    sentence = f"{tmp_path / 'base'}: it has the transformer '{kind}' in place of a UNet: it is "
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)
