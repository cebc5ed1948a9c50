"""What a student that draws in a few steps learns from: where its teacher would have arrived.

Multistep consistency distillation (arXiv 2403.06807) along DDIM's way, which has no noise of its
own: features and first noise make the picture alone, the student's as the teacher's.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

# What a UNet says of latents [B, channels, h, w] at timesteps [B], of the shape of the latents.
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stretch:
    """For each of a batch a short step of the teacher, from `start` to `stop`, and the `end` of the
    student's step that it is a part of: timesteps [B], -1 for clean latents."""

    start: Tensor
    stop: Tensor
    end: Tensor


class Trajectory(nn.Module):
    """DDIM's way from noise to clean latents: the steps that `scheduler` takes when it is set to
    `student_steps`, each of them cut into as many short ones, `teacher_steps` in all.

    `teacher_steps` is a multiple of `student_steps`, and not above the scheduler's timesteps.
    """

    def __init__(self, scheduler: DDIMScheduler, student_steps: int, teacher_steps: int):
        super().__init__()
        self.predicts_velocity = scheduler.config.prediction_type == "v_prediction"
        scheduler = copy.copy(scheduler)
        scheduler.set_timesteps(student_steps)
        length = scheduler.config.num_train_timesteps // student_steps
        cuts = teacher_steps // student_steps
        starts = scheduler.timesteps[:, None]
        ends = (starts - length).clamp(min=-1)  # where DDIM takes the step to
        points = starts + (ends - starts) * torch.arange(cuts + 1) / cuts
        points = points.round().long()  # [student_steps, cuts + 1]
        self.register_buffer("starts", points[:, :-1].flatten(), persistent=False)
        self.register_buffer("stops", points[:, 1:].flatten(), persistent=False)
        self.register_buffer("ends", ends.flatten().repeat_interleave(cuts), persistent=False)
        # Shares of the picture and of the noise at each timestep, and at -1 those at the end.
        kept = torch.cat([scheduler.alphas_cumprod, torch.ones(1)])
        self.register_buffer("signal", kept.sqrt(), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt(), persistent=False)

    def draw(self, count: int, draw: Callable[..., Tensor]) -> Stretch:
        """Short steps, uniformly drawn; `draw(distribution, shape)` gives random numbers."""
        index = draw(partial(torch.randint, len(self.starts)), (count,)).to(self.starts.device)
        return Stretch(self.starts[index], self.stops[index], self.ends[index])

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at timesteps [B]."""
        return _at(self.signal, timesteps) * clean + _at(self.noise, timesteps) * noise

    def clean(self, predicted: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a prediction of noise or velocity says, in fp32."""
        signal, noise = _at(self.signal, timesteps), _at(self.noise, timesteps)
        if self.predicts_velocity:
            return signal * latents - noise * predicted.float()
        return (latents - noise * predicted.float()) / signal

    def shares(self, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the latents at `start`, and of the clean ones that are expected there, DDIM
        makes the latents at `stop` of; [B, 1, 1, 1] each."""
        kept = _at(self.noise, stop) / _at(self.noise, start)
        return kept, _at(self.signal, stop) - kept * _at(self.signal, start)

    def step(self, clean: Tensor, latents: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """Where DDIM takes latents at `start`, by the clean ones that are expected there."""
        kept, added = self.shares(start, stop)
        return kept * latents + added * clean

    @torch.no_grad()
    def target(self, latents: Tensor, at: Stretch, teacher: Predict, student: Predict) -> Tensor:
        """The clean latents that the student should expect at `at.start`, [B, channels, h, w].

        The teacher takes its short step, and from there the student the rest of its own: what it
        should have expected leads there at once.
        """
        clean = self.clean(teacher(latents, at.start), latents, at.start)
        nearer = self.step(clean, latents, at.start, at.stop)
        here = at.stop.clamp(min=0)  # clean latents have no timestep, and nothing left to go
        clean = self.clean(student(nearer, here), nearer, here)
        left = (at.stop != at.end)[:, None, None, None]
        arrived = torch.where(left, self.step(clean, nearer, here, at.end), nearer)
        kept, added = self.shares(at.start, at.end)
        return (arrived - kept * latents) / added


def _at(rates: Tensor, timesteps: Tensor) -> Tensor:
    return rates[timesteps][:, None, None, None]
