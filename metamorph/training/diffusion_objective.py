"""What a diffusion UNet learns from: noised latents, what it predicts of them, and how much each
timestep counts."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from metamorph.errors import UserError
from metamorph.training.draws import Draws
from metamorph_kernels import send


@dataclass(frozen=True)
class NoisedLatents:
    """What a UNet is shown of a batch, what it has to predict, and how much each picture counts."""

    latents: Tensor  # [B, channels, h, w]
    timesteps: Tensor  # [B]
    target: Tensor  # [B, channels, h, w]
    weights: Tensor  # [B]


class DiffusionObjective:
    """The weighted squared error of what a UNet predicts, at uniformly drawn timesteps.

    It predicts the noise or the velocity, as `schedule` says. `min_snr_gamma` above 0 weights
    timesteps by their signal-to-noise ratio, clamped there (Min-SNR, arXiv 2303.09556); every
    channel's noise is shifted as a whole by normal numbers times `noise_offset`.
    """

    def __init__(
        self, schedule: DDPMScheduler, min_snr_gamma: float = 0.0, noise_offset: float = 0.0
    ):
        self.schedule, self.noise_offset = schedule, noise_offset
        self.weights = timestep_weights(schedule, min_snr_gamma)

    def noised(self, clean: Tensor, draw: Draws) -> NoisedLatents:
        """Adds noise to scaled latents [B, channels, h, w]; `draw` gives random numbers."""
        clean = clean.float()  # bf16 has no numbers between a signal of 1 and of 0.996
        noise = draw(torch.randn, clean.shape)
        timesteps = draw(partial(torch.randint, len(self.weights)), clean.shape[:1])
        if self.noise_offset:
            noise = noise + self.noise_offset * draw(torch.randn, (*clean.shape[:2], 1, 1))
        weights = send(self.weights[timesteps], clean.device)
        noise, timesteps = send(noise, clean.device), send(timesteps, clean.device)
        target = noise
        if self.schedule.config.prediction_type == "v_prediction":
            target = self.schedule.get_velocity(clean, noise, timesteps)
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        return NoisedLatents(noisy, timesteps, target, weights)

    def loss(self, predicted: Tensor, noised: NoisedLatents) -> Tensor:
        """Mean over the batch, in fp32. `predicted`: [B, channels, h, w]."""
        errors = F.mse_loss(predicted.float(), noised.target, reduction="none")
        return (errors.mean((1, 2, 3)) * noised.weights).mean()


def timestep_weights(schedule: DDPMScheduler, min_snr_gamma: float) -> Tensor:
    """How much each timestep counts, [timesteps]; 1 where `min_snr_gamma` is 0.

    Weights are those of an error of clean latents, min(SNR, gamma), brought to what is predicted:
    an error of noise is SNR times one of clean latents, one of velocity SNR + 1 times.
    """
    signal = schedule.alphas_cumprod
    if not min_snr_gamma:
        return torch.ones_like(signal)
    snr = signal / (1 - signal)
    scale = snr + 1 if schedule.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=min_snr_gamma) / scale


def training_schedule(
    base: DDPMScheduler, prediction: str, zero_terminal_snr: bool
) -> DDPMScheduler:
    """The noise schedule to train with, made of that of a base.

    Args:
        prediction: "epsilon", "v_prediction", or "base" for what the base predicts.
        zero_terminal_snr: rescale the betas, so that the last timestep is noise alone
            (arXiv 2305.08891), unless the base does so anyway; sampling then begins there.

    Raises `UserError` for noise that is to be predicted where there is nothing else.
    """
    if prediction == "base":
        prediction = base.config.prediction_type
    changes = {"prediction_type": prediction}
    if zero_terminal_snr or base.config.rescale_betas_zero_snr:
        if prediction == "epsilon":
            asked = "decoder.zero_terminal_snr" if zero_terminal_snr else "decoder.base's schedule"
            raise UserError(
                f"decoder.prediction: {asked} makes the last timestep noise alone, where a UNet "
                f"that predicts noise says nothing of the picture; expected v_prediction"
            )
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDPMScheduler.from_config(base.config, **changes)
