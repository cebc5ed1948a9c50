"""Pictures by every sampler: those of diffusers' own pipeline, in any batch and at any place."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from metamorph.decoder.denoising import Guidance
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import FLOW_MATCHING, SAMPLERS, sampler
from metamorph.errors import UserError
from tests.tiny_run import tiny_decoder

FEATURES = torch.nn.functional.normalize(
    torch.randn(5, 4, 24, generator=torch.Generator().manual_seed(0)), dim=-1
)
SEEDS = [3, 1, 4, 1, 5]
SCHEDULES = {
    "noise": {},
    "velocity": {"prediction_type": "v_prediction"},
    "zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
}
DECODER = tiny_decoder()


def set_sampler(monkeypatch, name: str, **schedule) -> None:
    noise = DDPMScheduler(beta_schedule="scaled_linear", steps_offset=1, **schedule)
    monkeypatch.setattr(DECODER, "scheduler", sampler(name, noise.config))


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many rows the UNet is given, in each call."""
    rows, forward = [], DECODER.unet.forward
    monkeypatch.setattr(
        DECODER.unet, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest)
    )
    return rows


def difference(one, other) -> int:
    """The largest of any pixel, in 255ths."""
    return int(np.abs(np.subtract(one, other, dtype=int)).max())


def by_diffusers(features, seed: int, **options) -> list:
    """By `StableDiffusionPipeline`, with the conditions of features for those of a text."""
    scheduler = type(DECODER.scheduler).from_config(DECODER.scheduler.config)
    pipeline = StableDiffusionPipeline(
        DECODER.vae, None, None, DECODER.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    conditions = DECODER.adapter(features).detach()
    return pipeline(
        prompt_embeds=conditions,
        negative_prompt_embeds=torch.zeros_like(conditions),
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).images


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_sampler_draws_what_the_pipeline_of_diffusers_draws(monkeypatch, name, schedule):
    set_sampler(monkeypatch, name, **SCHEDULES[schedule])
    options = {"num_inference_steps": 5, "guidance_scale": 3.0, "guidance_rescale": 0.7}
    drawn = DECODER.draw(FEATURES[:2], generator=torch.Generator().manual_seed(1), **options)
    assert np.std(np.asarray(drawn[0])) > 1
    for one, other in zip(drawn, by_diffusers(FEATURES[:2], 1, **options), strict=True):
        assert difference(one, other) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_sampler_previews_the_picture_that_the_unet_expects(monkeypatch, name, schedule):
    """A UNet that knows the one clean picture shows it from the first step on."""
    set_sampler(monkeypatch, name, **SCHEDULES[schedule])
    clean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    cumulative = DECODER.scheduler.alphas_cumprod.double()

    def knows_the_picture(sample, timestep, condition):
        signal, noise = cumulative[int(timestep)].sqrt(), (1 - cumulative[int(timestep)]).sqrt()
        found = (sample.double() - signal * clean) / noise
        if DECODER.scheduler.config.prediction_type == "v_prediction":
            found = signal * found - noise * clean
        return UNet2DConditionOutput(found.float())

    monkeypatch.setattr(DECODER.unet, "forward", knows_the_picture)
    *before, last = DECODER.steps(FEATURES[:1], num_inference_steps=5, preview_every=1)
    [picture] = last.pictures
    assert len(before) == 4 and np.asarray(picture).std() > 1
    for step in before:
        assert difference(step.previews[0], picture) <= 2


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("done", [1, 3])
def test_pictures_leave_a_batch_between_two_steps_of_every_sampler(monkeypatch, name, done):
    set_sampler(monkeypatch, name)
    whole = DECODER.draw(FEATURES, seeds=SEEDS, num_inference_steps=5)
    drawing = DECODER.steps(FEATURES, seeds=SEEDS, num_inference_steps=5)
    for _ in range(done):
        next(drawing)
    drawing.keep([4, 0])
    fifth, first = [*drawing][-1].pictures
    assert difference(fifth, whole[4]) <= 1 and difference(first, whole[0]) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_gives_the_same_picture_in_any_batch_and_at_any_place(monkeypatch, calls, name):
    set_sampler(monkeypatch, name)
    alone = [
        DECODER.draw(FEATURES[row : row + 1], seeds=[seed])[0] for row, seed in enumerate(SEEDS)
    ]
    for order, size in (([4, 3, 2, 1, 0], None), ([1, 0, 3, 2, 4], 2), ([0, 2, 4, 1, 3], 4)):
        seeds, generators = (
            [SEEDS[row] for row in order],
            [torch.Generator().manual_seed(SEEDS[row]) for row in order],
        )
        calls.clear()
        for ways in ({"seeds": seeds}, {"generator": generators}):
            drawn = DECODER.draw(FEATURES[order], batch_size=size, **ways)
            for row, picture in zip(order, drawn, strict=True):
                assert difference(picture, alone[row]) <= 1
        assert max(calls) == 2 * (size or 5)  # never more at once, and twice with guidance


def test_a_generator_for_all_gives_the_same_pictures_in_any_chunks():
    def drawn(batch_size):
        one = torch.Generator().manual_seed(2)
        return DECODER.draw(FEATURES, generator=one, batch_size=batch_size, output_type="np")

    np.testing.assert_allclose(drawn(2), drawn(5), atol=1 / 255)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpm++"])
def test_a_sampler_can_be_named_for_one_call(monkeypatch, tmp_path, name):
    """Whether the decoder was saved in between or not, and whichever is its own."""

    def latents(decoder, **options):
        return decoder.draw(
            FEATURES[:1], seeds=[1], num_inference_steps=4, output_type="latent", **options
        )

    before = DECODER.scheduler
    named = latents(DECODER, scheduler=name)
    assert DECODER.scheduler is before
    assert (named - latents(DECODER)).abs().max() > 1e-3
    DECODER.save_pretrained(tmp_path)
    opened = VisualDecoder.from_folder(tmp_path)
    torch.testing.assert_close(latents(opened, scheduler=name), named)
    set_sampler(monkeypatch, name)
    torch.testing.assert_close(latents(DECODER), named)
    DECODER.save_pretrained(tmp_path / "own")
    opened = VisualDecoder.from_folder(tmp_path / "own")
    assert type(opened.scheduler) is type(DECODER.scheduler)
    torch.testing.assert_close(latents(opened), named)


def test_the_unet_predicts_without_the_condition_only_where_guidance_needs_it(calls):
    def rows(**options):
        calls.clear()
        DECODER.draw(FEATURES[:1], num_inference_steps=10, **options)
        return calls.copy()

    assert rows(guidance_scale=1) == [1] * 10
    assert rows(guidance_scale=0) == rows(guidance_scale=4) == [2] * 10
    assert rows(guidance_scale=4, guidance_interval=(0.2, 0.5)) == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    assert rows(guidance_scale=4, guidance_interval=(0.5, 0.5)) == [1] * 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_acts_in_its_interval_alone(monkeypatch, name):
    set_sampler(monkeypatch, name)

    def latents(scale, interval=(0.0, 1.0)):
        return DECODER.draw(
            FEATURES[:2], seeds=[1, 2], num_inference_steps=4, guidance_scale=scale,
            guidance_interval=interval, output_type="latent",
        )  # fmt: skip

    torch.testing.assert_close(latents(5, (0.5, 0.5)), latents(1))
    torch.testing.assert_close(latents(5, (0.0, 0.9)), latents(5))
    assert (latents(5, (0.0, 0.5)) - latents(5)).abs().max() > 1e-3
    assert (latents(5, (0.0, 0.5)) - latents(5, (0.5, 1.0))).abs().max() > 1e-3


def test_rescaled_guidance_has_the_standard_deviation_of_the_condition_by_so_much():
    generator = torch.Generator().manual_seed(0)
    without, with_it = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    guided = without + 6 * (with_it - without)
    for share in (0.0, 0.4, 1.0):
        found = Guidance(6, share).apply(without, with_it)
        for picture, wide, own in zip(found, guided, with_it, strict=True):
            expected = share * own.std() + (1 - share) * wide.std()
            torch.testing.assert_close(picture, wide * (expected / wide.std()))


@pytest.mark.parametrize(("output_type", "shape"), [("np", (3, 64, 64, 3)), ("pt", (3, 3, 64, 64))])
def test_output_types_are_those_of_diffusers(output_type, shape):
    options = {"seeds": [1, 2, 3], "batch_size": 2}
    drawn = DECODER.draw(FEATURES[:3], output_type=output_type, **options)
    assert drawn.shape == shape and drawn.min() >= 0 and drawn.max() <= 1
    pictures = DECODER.draw(FEATURES[:3], **options)
    last = np.asarray(drawn[2]) if output_type == "np" else drawn[2].permute(1, 2, 0).numpy()
    assert np.abs(last * 255 - np.asarray(pictures[2], float)).max() <= 0.51
    called = DECODER(FEATURES[:3], **options)
    assert called.images == pictures
    assert DECODER(FEATURES[:3], return_dict=False, **options)[0] == pictures


def test_latents_are_those_that_the_vae_decodes():
    latents = DECODER.draw(FEATURES[:3], seeds=[1, 2, 3], batch_size=2, output_type="latent")
    assert latents.shape == (3, 4, 8, 8)
    with torch.no_grad():
        pixels = DECODER.vae.decode(latents / DECODER.vae.config.scaling_factor).sample
    [picture] = DECODER.draw(FEATURES[2:3], seeds=[3])
    again = DECODER.image_processor.postprocess(pixels[2:], output_type="pil")[0]
    assert difference(again, picture) <= 1


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (
            {"scheduler": "dpm"},
            r"scheduler: expected one of dpm.*, euler, got 'dpm'",
        ),
        ({"scheduler": FLOW_MATCHING}, "scheduler: flow_match_euler follows the velocity that a"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: expected 0 to 1, got 1.5"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval: .*, got \(0.5, 0.2\)"),
        ({"guidance_interval": (0, float("nan"))}, "guidance_interval: expected two shares"),
        ({"output_type": "png"}, r"output_type: expected one of \('pil', 'np', 'pt', 'latent'\)"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"seeds": [1, 2]}, "seeds: expected one for each of 5 pictures, got 2"),
        ({"seeds": SEEDS, "generator": torch.Generator()}, "seeds: expected none beside a gen"),
    ],
)
def test_arguments_out_of_their_limits_are_refused(wrong, problem):
    with pytest.raises(ValueError, match=problem):
        DECODER.draw(FEATURES, **wrong)
    with pytest.raises(ValueError, match="of at least one picture"):
        DECODER.draw(FEATURES[:0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_that_a_sampler_cannot_take_are_said_to_the_user(monkeypatch, name):
    """Of those who have all timesteps, some divide by the distance of two that are one."""
    set_sampler(monkeypatch, name)
    with pytest.raises(UserError, match="num_inference_steps: expected at most 1000, got 1001"):
        DECODER.steps(FEATURES, num_inference_steps=1001)
    if name in ("ddim", "euler"):
        assert len(DECODER.steps(FEATURES, num_inference_steps=1000)) == 1000
    else:
        with pytest.raises(UserError, match="num_inference_steps: 1000 steps of this sampler wou"):
            DECODER.steps(FEATURES, num_inference_steps=1000)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dpm++", {"algorithm_type": "sde-dpmsolver++"}),
        ("unipc", {"predict_x0": False}),
        ("dpm++", {"use_flow_sigmas": True}),
    ],
)
def test_a_sampler_with_noise_of_its_own_or_without_previews_is_refused(
    monkeypatch, tmp_path, name, changes
):
    set_sampler(monkeypatch, name)
    DECODER.save_pretrained(tmp_path)
    path = tmp_path / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    [key] = changes
    with pytest.raises(UserError, match=rf"scheduler_config\.json: {key} is"):
        VisualDecoder.from_folder(tmp_path)


def test_vae_slicing_and_tiling_are_those_of_diffusers(monkeypatch):
    decoded = []
    decode = DECODER.vae.decoder.forward
    monkeypatch.setattr(
        DECODER.vae.decoder, "forward", lambda x, *rest: decoded.append(x.shape) or decode(x, *rest)
    )
    options = {"seeds": [1, 2, 3], "output_type": "pt"}
    whole = DECODER.draw(FEATURES[:3], **options)
    try:
        DECODER.vae.enable_slicing()
        torch.testing.assert_close(DECODER.draw(FEATURES[:3], **options), whole, atol=1e-3, rtol=0)
        assert decoded == [(3, 4, 8, 8)] + [(1, 4, 8, 8)] * 3
        DECODER.vae.enable_tiling()
        monkeypatch.setattr(DECODER.vae, "tile_latent_min_size", 4)
        monkeypatch.setattr(DECODER.vae, "tile_sample_min_size", 32)
        assert DECODER.draw(FEATURES[:3], **options).shape == whole.shape
        assert decoded[-1][-1] <= 4
    finally:
        DECODER.vae.disable_slicing()
        DECODER.vae.disable_tiling()
