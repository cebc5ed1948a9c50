"""DDIM's way from noise to clean latents (arXiv 2010.02502), in a student's few steps and in the
many of its teacher. It has no noise of its own: features and first noise make the picture alone."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from diffusers import DDIMScheduler
from torch import Tensor

# What a UNet says of latents [B, channels, h, w] at timesteps [B], of the shape of the latents.
Predict = Callable[[Tensor, Tensor], Tensor]


class Trajectory:
    """The steps that `scheduler` takes when it is set to `student_steps`, each of them cut into as
    many short ones of a teacher, `teacher_steps` in all.

    `steps` has the timesteps of each of them, from its start through the teacher's to its end, -1
    for clean latents. `teacher_steps` is a multiple of `student_steps`, and not above the
    scheduler's timesteps.
    """

    def __init__(self, scheduler: DDIMScheduler, student_steps: int, teacher_steps: int):
        self.predicts_velocity = scheduler.config.prediction_type == "v_prediction"
        scheduler = copy.copy(scheduler)
        scheduler.set_timesteps(student_steps)
        length = scheduler.config.num_train_timesteps // student_steps
        cuts = teacher_steps // student_steps
        starts = scheduler.timesteps[:, None]
        ends = (starts - length).clamp(min=-1)  # where DDIM takes the step to
        points = starts + (ends - starts) * torch.arange(cuts + 1) / cuts
        self.steps: list[list[int]] = points.round().long().tolist()
        # Shares of the picture and of the noise at each timestep, and at -1 those at the end.
        kept = torch.cat([scheduler.alphas_cumprod.double(), torch.ones(1)])
        self.signal: list[float] = kept.sqrt().tolist()
        self.noise: list[float] = (1 - kept).sqrt().tolist()

    def clean(self, predicted: Tensor, latents: Tensor, timestep: int) -> Tensor:
        """The clean latents that a prediction of noise or velocity says, in fp32."""
        signal, noise = self.signal[timestep], self.noise[timestep]
        if self.predicts_velocity:
            return signal * latents - noise * predicted.float()
        return (latents - noise * predicted.float()) / signal

    def follow(self, predict: Predict, latents: Tensor, timesteps: Sequence[int]) -> Tensor:
        """Where `predict` takes fp32 latents [B, channels, h, w] at the first of the timesteps, by
        way of the others, at the last."""
        for start, stop in pairwise(timesteps):
            now = torch.full((len(latents),), start, device=latents.device)
            clean = self.clean(predict(latents, now), latents, start)
            kept = self.noise[stop] / self.noise[start]
            latents = kept * latents + (self.signal[stop] - kept * self.signal[start]) * clean
        return latents
