"""The way of a student and its teacher to a picture, beside diffusers' and what is known of it."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from metamorph.training.decoders.trajectory import Trajectory

PREDICTIONS = ("epsilon", "v_prediction")
SHAPE = (2, 4, 8, 8)


def scheduler(prediction: str = "epsilon", **settings) -> DDIMScheduler:
    noise = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction, **settings)
    return DDIMScheduler.from_config(noise.config, clip_sample=False, timestep_spacing="trailing")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_student_of_four_steps_takes_those_of_ddim():
    trajectory = Trajectory(scheduler(), student_steps=4, teacher_steps=8)
    assert trajectory.steps == [[999, 874, 749], [749, 624, 499], [499, 374, 249], [249, 124, -1]]


@given(student_steps=st.integers(1, 48), cuts=st.integers(1, 20))
def test_steps_are_cut_without_gaps(student_steps, cuts):
    ddim = scheduler()
    steps = torch.tensor(Trajectory(ddim, student_steps, student_steps * cuts).steps)
    ddim.set_timesteps(student_steps)
    assert torch.equal(steps[:, 0], ddim.timesteps)
    assert (steps[:, :-1] > steps[:, 1:]).all() and steps.shape[1] == cuts + 1
    expected = (ddim.timesteps - 1000 // student_steps).clamp(min=-1)  # as diffusers has it
    assert torch.equal(steps[:, -1], expected)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True)],
)
def test_it_is_the_way_of_diffusers(prediction, zero_snr, steps):
    """That of a student alone, or all along by the steps of its teacher."""
    ddim = scheduler(prediction, rescale_betas_zero_snr=zero_snr)
    ddim.set_timesteps(steps)
    asked = []

    def predict(latents, timesteps):
        assert timesteps.shape == (2,) and (timesteps == timesteps[0]).all()
        asked.append(int(timesteps[0]))
        return 0.3 * latents + timesteps.view(-1, 1, 1, 1) / 2000

    latents = expected = normal(*SHAPE)
    for timestep in ddim.timesteps:
        predicted = predict(expected, timestep.repeat(2))
        expected = ddim.step(predicted, int(timestep), expected).prev_sample
    asked.clear()
    trajectory = Trajectory(ddim, min(steps, 4), steps)
    for timesteps in trajectory.steps:
        latents = trajectory.follow(predict, latents, timesteps)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert asked == ddim.timesteps.tolist()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_who_knows_the_only_picture_arrives_there(prediction):
    """Of a world of one picture the right prediction is known: all ways lead to that picture."""
    trajectory = Trajectory(scheduler(prediction), 4, 16)
    picture, latents = normal(2, *SHAPE)

    def knows(latents, timesteps):
        signal, noise = (
            rates[int(timesteps[0])] for rates in (trajectory.signal, trajectory.noise)
        )
        said = (latents - signal * picture) / noise
        return said if prediction == "epsilon" else (signal * latents - picture) / noise

    for timesteps in trajectory.steps:
        fast = trajectory.follow(knows, latents, (timesteps[0], timesteps[-1]))
        slow = trajectory.follow(knows, latents, timesteps)
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)
        latents = fast
    torch.testing.assert_close(latents, picture, rtol=1e-3, atol=1e-3)
