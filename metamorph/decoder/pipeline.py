"""The diffusion decoder: visual features in, pictures out, in diffusers' folder layout."""

import math
from collections import abc
from pathlib import Path
from typing import Any

import numpy as np
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

from metamorph.data.features import identity
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.parts import check_parts, load_part, load_scheduler
from metamorph.errors import UserError, shown
from metamorph.folders import check_folder, check_result
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json

COMPONENTS = {  # as model_index.json names them; no other class is ever loaded
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "adapter": ["metamorph.decoder.adapter", "FeatureAdapter"],
}


class VisualDecoder(DiffusionPipeline):
    """Draws what visual features say, with classifier-free guidance against a zero condition.

    `guidance_scale` and `sampling_steps` are the defaults of a call; they are saved with it, as are
    the features that it was trained on: so many a picture, of the encoder with this `identity`.
    None where that is not known.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: DPMSolverMultistepScheduler,
        adapter: FeatureAdapter,
        guidance_scale: float = 3.0,
        sampling_steps: int = 20,
        tokens_per_image: int | None = None,
        encoder: str | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, adapter=adapter)
        self.register_to_config(
            guidance_scale=guidance_scale, sampling_steps=sampling_steps,
            tokens_per_image=tokens_per_image, encoder=encoder,
        )  # fmt: skip
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1)
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> "VisualDecoder":
        """Load what `save_pretrained` wrote, from safetensors and of the expected classes alone.

        Raises `UserError` naming the folder if it is missing, broken or another pipeline.
        """
        folder = check_folder(folder)
        index = _read_index(folder / "model_index.json")
        expected = check_parts(folder)
        adapter = load_part(FeatureAdapter, folder / "adapter")
        width = adapter.config.condition_width
        if width != expected:
            raise UserError(
                f"{folder}: its adapter makes conditions of width {width}, but cross_attention_dim "
                f"of its UNet is {expected}"
            )
        return cls(
            load_part(AutoencoderKL, folder / "vae"),
            load_part(UNet2DConditionModel, folder / "unet"),
            load_scheduler(DPMSolverMultistepScheduler, folder / "scheduler"),
            adapter,
            index["guidance_scale"],
            index["sampling_steps"],
            index.get("tokens_per_image"),
            index.get("encoder"),
        )

    @classmethod
    def for_model(
        cls, folder: str | Path, config: MetaMorphConfig, vision: VisionEncoder | None
    ) -> "VisualDecoder":
        """`from_folder`, quiet, of a decoder for the features that a model predicts.

        Raises `UserError` for one that was trained on others: of another width, another number of
        them a picture, or of another encoder than `vision`, where both are known.
        """
        decoder = cls.from_folder(folder)
        for what, given, expected in (
            ("of width {}", decoder.adapter.config.feature_width, config.visual_width),
            ("in pictures of {} tokens", decoder.config.tokens_per_image, config.tokens_per_image),
        ):
            if given not in (None, expected):
                raise UserError(
                    f"{folder}: it draws from features {what.format(given)}, but the model "
                    f"predicts them {what.format(expected)}"
                )
        known = decoder.config.encoder
        if known is not None and vision is not None and known != identity(vision):
            raise UserError(
                f"{folder}: it draws from features of another encoder than that of the model: "
                f"other weights, or another normalisation or size of pictures"
            )
        decoder.set_progress_bar_config(disable=True)
        return decoder

    @torch.no_grad()
    def __call__(
        self,
        features: Tensor,
        *,
        guidance_scale: float | None = None,
        sampling_steps: int | None = None,
        generators: abc.Sequence[torch.Generator] | None = None,
    ) -> list[Image.Image]:
        """Pictures of [B, tokens, C] features.

        `guidance_scale` 1 turns guidance off. `generators`, one a picture and each on the CPU (so
        that a seed gives the same noise on any device), make the drawing repeatable, whatever else
        is drawn beside it. Raises `ValueError` for features of another width, another number of
        generators and less than one step, `UserError` for pixels that are not finite.
        """
        width = self.adapter.config.feature_width
        if features.ndim != 3 or features.shape[-1] != width:
            raise ValueError(f"features must be [B, tokens, {width}], got {tuple(features.shape)}")
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        steps = self.config.sampling_steps if sampling_steps is None else sampling_steps
        if steps < 1:
            raise ValueError(f"sampling_steps: expected at least 1, got {steps}")
        if generators is None:
            generators = [torch.default_generator] * len(features)
        if len(generators) != len(features):
            raise ValueError(
                f"generators: expected one for each of {len(features)} pictures, "
                f"got {len(generators)}"
            )
        device, dtype = self.unet.device, self.unet.dtype
        condition = self.adapter(features.to(device, dtype))
        guided = scale != 1
        if guided:
            condition = torch.cat([torch.zeros_like(condition), condition])
        self.scheduler.set_timesteps(steps, device=device)
        side = self.unet.config.sample_size
        shape = (self.unet.config.in_channels, side, side)
        start = [torch.randn(shape, generator=generator) for generator in generators]
        latents = torch.stack(start).to(device, dtype) * self.scheduler.init_noise_sigma
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
        if not pixels.isfinite().all():
            raise UserError(
                "the decoder's pixels are NaN or infinite: its weights are damaged, its precision "
                "is too low for them, or its guidance scale too large"
            )
        return self.image_processor.postprocess(pixels.float(), output_type="pil")


def _read_index(path: Path) -> dict:
    """model_index.json. `UserError` unless it is that of a `VisualDecoder`."""
    check_result(path, "decoder")
    index = read_json(path)
    if index.get("_class_name") != VisualDecoder.__name__:
        found = index.get("_class_name")
        raise UserError(f"{path}: expected the pipeline {VisualDecoder.__name__}, got {found!r}")
    for name, expected in COMPONENTS.items():
        if index.get(name) != expected:
            raise UserError(f"{path}: {name} is {index.get(name)!r}, expected {expected}")
    for name, kinds, least in (("guidance_scale", (int, float), 0), ("sampling_steps", (int,), 1)):
        value: Any = index.get(name)
        if type(value) not in kinds or not least <= value < math.inf:
            raise UserError(f"{path}: {name} is {value!r}, expected a number of at least {least}")
    for name, kind in (("tokens_per_image", int), ("encoder", str)):
        if type(index.get(name)) not in (kind, type(None)):
            raise UserError(f"{path}: {name} is {shown(index[name])}, expected {kind.__name__}")
    return index


def noise_generator(seed: int, index: int) -> torch.Generator:
    """On the CPU, for the noise of picture number `index` of a request with this seed."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]))


def dpm_solver(noise_scheduler: DDPMScheduler) -> DPMSolverMultistepScheduler:
    """A DPM-Solver++ sampler for the noise schedule that a UNet was trained with."""
    return DPMSolverMultistepScheduler.from_config(
        noise_scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
