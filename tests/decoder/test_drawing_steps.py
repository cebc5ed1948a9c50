"""A drawing goes on step by step: what it shows on the way, and what it must not depend on."""

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from metamorph.decoder.denoising import noise_generator
from metamorph.errors import UserError
from tests.tiny_run import tiny_decoder

FEATURES = torch.nn.functional.normalize(
    torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(0)), dim=-1
)


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder()


def generators(*numbers: int) -> list[torch.Generator]:
    return [noise_generator(7, number) for number in numbers]


def difference(one, other) -> int:
    """The largest of any pixel, in 255ths."""
    return int(np.abs(np.subtract(one, other, dtype=int)).max())


def test_the_last_step_has_the_pictures_that_a_call_returns(decoder):
    steps = list(decoder.steps(FEATURES, num_inference_steps=4, generator=generators(0, 1, 2)))
    assert [(step.step, step.steps) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [step.pictures for step in steps[:-1]] == [None] * 3
    called = decoder.draw(FEATURES, num_inference_steps=4, generator=generators(0, 1, 2))
    assert steps[-1].pictures == called


def test_previews_come_with_every_so_many_steps_but_the_last(decoder):
    def previewed(preview_every):
        drawing = decoder.steps(FEATURES, num_inference_steps=6, preview_every=preview_every)
        return [step.step for step in drawing if step.previews is not None]

    assert previewed(0) == []
    assert previewed(1) == [1, 2, 3, 4, 5]
    assert previewed(2) == [2, 4]
    assert previewed(6) == previewed(7) == []


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_preview_is_the_picture_that_the_unet_expects(decoder, monkeypatch, guidance_scale):
    """A UNet that knows the one clean picture shows it from the first step on."""
    clean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    schedule = decoder.scheduler

    def knows_the_noise(sample, timestep, condition):
        alpha, sigma = schedule.alpha_t[timestep], schedule.sigma_t[timestep]
        return UNet2DConditionOutput((sample - alpha * clean) / sigma)

    monkeypatch.setattr(decoder.unet, "forward", knows_the_noise)
    *before, last = decoder.steps(
        FEATURES[:1], guidance_scale=guidance_scale, num_inference_steps=5, preview_every=1
    )
    [picture] = last.pictures
    assert len(before) == 4 and np.asarray(picture).std() > 1
    for step in before:
        assert difference(step.previews[0], picture) <= 1


def test_drawings_go_on_beside_each_other(decoder):
    def drawing(number, steps):
        row = FEATURES[number : number + 1]
        return decoder.steps(row, num_inference_steps=steps, generator=generators(number))

    alone = [[*drawing(0, 5)][-1].pictures, [*drawing(1, 3)][-1].pictures]
    first, second = drawing(0, 5), drawing(1, 3)
    next(first), next(first)
    assert [*second][-1].pictures == alone[1]
    assert [*first][-1].pictures == alone[0]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_pictures_leave_a_batch_between_two_steps(decoder, guidance_scale, done):
    options = {"guidance_scale": guidance_scale, "num_inference_steps": 5}
    whole = decoder.draw(FEATURES, generator=generators(0, 1, 2), **options)
    drawing = decoder.steps(FEATURES, generator=generators(0, 1, 2), **options)
    for _ in range(done):
        next(drawing)
    drawing.keep([2, 0])
    third, first = [*drawing][-1].pictures
    assert difference(third, whole[2]) <= 1 and difference(first, whole[0]) <= 1


def test_a_callback_sees_and_may_change_the_latents_of_every_step(decoder):
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append((pipe, step, int(timestep), kwargs["latents"].shape[0]))
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 2 else {}

    drawn = decoder.draw(
        FEATURES, num_inference_steps=3, batch_size=2, callback_on_step_end=callback,
        output_type="latent",
    )  # fmt: skip
    assert [(pipe is decoder, step, rows) for pipe, step, _, rows in seen] == [
        (True, step, rows) for rows in (2, 1) for step in range(3)
    ]
    timesteps = [timestep for _, _, timestep, _ in seen]
    assert timesteps[:3] == timesteps[3:] == sorted(timesteps[:3], reverse=True)
    assert drawn.abs().max() == 0


def test_an_interrupted_drawing_is_shown_as_it_is(decoder):
    calls = []

    def callback(pipe, step, timestep, kwargs):
        calls.append(step)
        pipe._interrupt = step == 1
        return kwargs

    options = {"seeds": [1, 2, 3], "num_inference_steps": 6, "output_type": "latent"}
    stopped = decoder.draw(FEATURES, batch_size=2, callback_on_step_end=callback, **options)
    assert len(stopped) == 2 and calls == [0, 1]  # the third was not begun
    drawing = decoder.steps(FEATURES, **options)
    next(drawing), next(drawing)
    torch.testing.assert_close(stopped, drawing.latents[:2])
    assert len(decoder.draw(FEATURES, **options)) == 3  # the next one goes to its end


def test_what_cannot_be_drawn_is_refused_before_the_first_step(decoder):
    for wrong, problem in (
        ({"preview_every": -1}, "preview_every: expected at least 0, got -1"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected at least 1, got 0"),
        ({"generator": generators(0)}, "expected one for each of 3 pictures, got 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            decoder.steps(FEATURES, **wrong)


def test_a_preview_that_is_not_finite_ends_the_drawing(decoder):
    drawing = decoder.steps(FEATURES * torch.nan, num_inference_steps=9, preview_every=1)
    with pytest.raises(UserError, match="pixels are NaN or infinite"):
        next(drawing)
