"""The diffusion decoder: visual features in, pictures out, in diffusers' folder layout."""

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from metamorph.decoder.adapter import FeatureAdapter


class VisualDecoder(DiffusionPipeline):
    """Draws what visual features say, with classifier-free guidance against a zero condition.

    ``guidance_scale`` and ``sampling_steps`` are the defaults of a call; they are saved with it.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DPMSolverMultistepScheduler,
        adapter: FeatureAdapter,
        guidance_scale: float = 3.0,
        sampling_steps: int = 20,
    ):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, adapter=adapter)
        self.register_to_config(guidance_scale=guidance_scale, sampling_steps=sampling_steps)
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1)
        )

    @torch.no_grad()
    def __call__(
        self,
        features: Tensor,
        *,
        guidance_scale: float | None = None,
        sampling_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Image.Image]:
        """Pictures of [B, tokens, C] features.

        ``guidance_scale`` 1 turns guidance off. ``generator`` (on the CPU, so that a seed gives
        the same noise on any device) makes the drawing repeatable. Raises ``ValueError`` for
        features of another width.
        """
        width = self.adapter.config.feature_width
        if features.ndim != 3 or features.shape[-1] != width:
            raise ValueError(f"features must be [B, tokens, {width}], got {tuple(features.shape)}")
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        steps = sampling_steps or self.config.sampling_steps
        device, dtype = self.unet.device, self.unet.dtype
        condition = self.adapter(features.to(device, dtype))
        guided = scale != 1
        if guided:
            condition = torch.cat([torch.zeros_like(condition), condition])
        self.scheduler.set_timesteps(steps, device=device)
        side = self.unet.config.sample_size
        shape = (len(features), self.unet.config.in_channels, side, side)
        latents = torch.randn(shape, generator=generator).to(device, dtype)
        latents = latents * self.scheduler.init_noise_sigma
        for timestep in self.progress_bar(self.scheduler.timesteps):
            sample = torch.cat([latents, latents]) if guided else latents
            noise = self.unet(
                self.scheduler.scale_model_input(sample, timestep), timestep, condition
            ).sample
            if guided:
                without, with_condition = noise.chunk(2)
                noise = without + scale * (with_condition - without)
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return self.image_processor.postprocess(pixels.float(), output_type="pil")


def dpm_solver(noise_scheduler: DDPMScheduler) -> DPMSolverMultistepScheduler:
    """A DPM-Solver++ sampler for the noise schedule that a UNet was trained with."""
    return DPMSolverMultistepScheduler.from_config(
        noise_scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
