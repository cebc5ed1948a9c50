"""What a few-step student has to expect, beside computations written here."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from metamorph.training.decoders.consistency import Stretch, Trajectory

PREDICTIONS = ("epsilon", "v_prediction")
SHAPE = (4, 8, 8)


def scheduler(prediction: str = "epsilon", **settings) -> DDIMScheduler:
    noise = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction, **settings)
    return DDIMScheduler.from_config(noise.config, clip_sample=False, timestep_spacing="trailing")


def numbers(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda distribution, shape: distribution(shape, generator=generator)


def all_stretches(trajectory: Trajectory) -> Stretch:
    return Stretch(trajectory.starts, trajectory.stops, trajectory.ends)


def test_a_student_of_four_steps_takes_those_of_ddim():
    trajectory = Trajectory(scheduler(), student_steps=4, teacher_steps=8)
    assert trajectory.starts.tolist() == [999, 874, 749, 624, 499, 374, 249, 124]
    assert trajectory.stops.tolist() == [874, 749, 624, 499, 374, 249, 124, -1]
    assert trajectory.ends.tolist() == [749, 749, 499, 499, 249, 249, -1, -1]


@given(student_steps=st.integers(1, 48), cuts=st.integers(1, 20))
def test_steps_are_cut_without_gaps(student_steps, cuts):
    ddim = scheduler()
    at = all_stretches(Trajectory(ddim, student_steps, student_steps * cuts))
    starts, stops, ends = (
        times.view(student_steps, cuts) for times in (at.start, at.stop, at.end)
    )  # fmt: skip
    ddim.set_timesteps(student_steps)
    assert torch.equal(starts[:, 0], ddim.timesteps)
    assert torch.equal(starts[:, 1:], stops[:, :-1])
    assert (starts > stops).all() and (stops >= ends).all()
    expected = (ddim.timesteps - 1000 // student_steps).clamp(min=-1)  # as diffusers has it
    assert torch.equal(ends, expected[:, None].expand_as(ends))
    assert torch.equal(stops[:, -1], expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("student_steps", [1, 4])
def test_a_step_is_that_of_diffusers(prediction, student_steps):
    ddim = scheduler(prediction)
    trajectory = Trajectory(ddim, student_steps, student_steps)
    ddim.set_timesteps(student_steps)
    latents, predicted = numbers()(torch.randn, (2, 2, *SHAPE))
    for start, stop in zip(trajectory.starts, trajectory.stops, strict=True):
        at, to = start.repeat(2), stop.repeat(2)
        clean = trajectory.clean(predicted, latents, at)
        expected = ddim.step(predicted, int(start), latents)
        torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-4, atol=1e-4)
        arrived = trajectory.step(clean, latents, at, to)
        torch.testing.assert_close(arrived, expected.prev_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_leads_where_teacher_and_student_go(prediction):
    """Beside the same by scalars, one picture of one number after another, in Python's floats."""
    ddim = scheduler(prediction)
    trajectory = Trajectory(ddim, 4, 16)
    kept = [*map(float, ddim.alphas_cumprod.double()), 1.0]

    def clean(predicted, latent, timestep):
        signal, noise = kept[timestep] ** 0.5, (1 - kept[timestep]) ** 0.5
        if prediction == "epsilon":
            return (latent - noise * predicted) / signal
        return signal * latent - noise * predicted

    def ddim_step(expected, latent, start, stop):
        noise = (latent - kept[start] ** 0.5 * expected) / (1 - kept[start]) ** 0.5
        return kept[stop] ** 0.5 * expected + (1 - kept[stop]) ** 0.5 * noise

    def teacher(latents, timesteps):
        return 0.3 * latents + timesteps.view(-1, 1, 1, 1) / 2000

    def student(latents, timesteps):
        return 0.4 * latents - timesteps.view(-1, 1, 1, 1) / 3000

    at = all_stretches(trajectory)
    latents = torch.linspace(-2, 2, 16).view(16, 1, 1, 1)
    found = trajectory.target(latents, at, teacher, student).flatten()
    for index, latent in enumerate(latents.flatten().tolist()):
        start, stop, end = (int(times[index]) for times in (at.start, at.stop, at.end))
        nearer = ddim_step(
            clean(0.3 * latent + start / 2000, latent, start), latent, start, stop
        )  # fmt: skip
        arrived = nearer
        if stop != end:
            arrived = ddim_step(clean(0.4 * nearer - stop / 3000, nearer, stop), nearer, stop, end)
        target = found[index].item()
        assert ddim_step(target, latent, start, end) == pytest.approx(arrived, abs=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_who_knows_the_only_picture_is_consistent(prediction):
    """Of a world of one picture the right prediction is known: all ways lead to that picture."""
    trajectory = Trajectory(scheduler(prediction), 4, 64)
    draw = numbers()
    picture, noise = draw(torch.randn, (2, 1, *SHAPE))

    def knows(latents, timesteps):
        signal = trajectory.signal[timesteps].view(-1, 1, 1, 1)
        share = trajectory.noise[timesteps].view(-1, 1, 1, 1)
        said = (latents - signal * picture) / share
        return said if prediction == "epsilon" else (signal * latents - picture) / share

    at = all_stretches(trajectory)
    latents = trajectory.add_noise(picture, noise, at.start)
    target = trajectory.target(latents, at, knows, knows)
    torch.testing.assert_close(target, picture.expand_as(target), rtol=1e-3, atol=1e-3)


def test_velocity_is_learned_from_noise_alone():
    """At the first timestep of a schedule of zero terminal SNR nothing is left of the picture."""
    trajectory = Trajectory(scheduler("v_prediction", rescale_betas_zero_snr=True), 4, 4)
    assert trajectory.signal[999] == 0
    noise = numbers()(torch.randn, (4, *SHAPE))
    at = all_stretches(trajectory)
    target = trajectory.target(noise, at, lambda latents, _: -latents, lambda latents, _: latents)
    assert target.isfinite().all()
    torch.testing.assert_close(target[0], noise[0])  # velocity is minus the picture there


def test_short_steps_are_drawn_evenly():
    trajectory = Trajectory(scheduler(), 4, 8)
    at = trajectory.draw(8000, numbers())
    counts = torch.stack([(at.start == start).sum() for start in trajectory.starts])
    assert counts.sum() == 8000 and (counts - 1000).abs().max() < 150
