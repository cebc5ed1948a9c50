"""The keys of a decoder, as in `keys`: its kind, how it is trained, how it draws."""

from dataclasses import dataclass
from typing import Literal

from metamorph.config.options import (
    DECODER_STAGE,
    DIFFUSION,
    DISTILL_STAGE,
    DRAWING_STAGES,
    ONE_PASS,
    SAMPLING,
    SHARE,
    option,
)


@dataclass
class DecoderConfig:
    """The decoder: its kind, how it is trained, and how it draws."""

    kind: Literal["diffusion", "rae"] = option(
        "diffusion: a UNet that starts from noise; rae: a ViT that decodes in one pass",
        "diffusion",
        **DECODER_STAGE,
    )
    base: str = option("diffusers folder with unet/, vae/ and scheduler/", "", **DIFFUSION)
    teacher: str = option("folder of a trained decoder to learn from", "", **DISTILL_STAGE)
    teacher_steps: int = option(
        "steps of the teacher on the whole way of a drawing", 20, minimum=1, **DISTILL_STAGE
    )
    fit: Literal["crop", "squash"] = option(
        "how a picture becomes a square, for the encoder as well: crop its middle, or squash it",
        "squash",
        **DRAWING_STAGES,
    )
    batch_size: int = option("images in an optimizer step", 32, minimum=1, **DRAWING_STAGES)
    accumulate: int = option(
        "parts that a process computes its images of a step in, one after another, to need less "
        "memory",
        1,
        minimum=1,
        **DRAWING_STAGES,
    )
    latents: str = option(
        "folder of cached latents of base, see metamorph encode --latents", "", **DIFFUSION
    )
    condition_dropout: float = option(
        "share of images trained without condition", 0.7, **SHARE, **DIFFUSION
    )
    guidance_scale: float = option(
        "classifier-free guidance when sampling: 3; distill: the teacher's",
        None,
        minimum=0,
        **SAMPLING,
    )
    sampling_steps: int = option(
        "denoising steps of a drawing: 20; distill: 4", None, minimum=1, **SAMPLING
    )
    sampler: Literal["dpm++", "unipc", "ddim", "euler", "flow_match_euler"] = option(
        "diffusers' scheduler of a drawing", "dpm++", **DIFFUSION
    )
    prediction: Literal["base", "epsilon", "v_prediction"] = option(
        "what the UNet predicts: noise or velocity, or what that of the base does",
        "base",
        **DIFFUSION,
    )
    zero_terminal_snr: bool = option(
        "rescale the noise schedule, so that its last timestep is noise alone", False, **DIFFUSION
    )
    min_snr_gamma: float = option(
        "weight timesteps by their signal-to-noise ratio, clamped here; 0 not to", 0.0, minimum=0,
        **DIFFUSION,
    )  # fmt: skip
    noise_offset: float = option(
        "how far each channel's noise is shifted as a whole, in standard deviations", 0.0,
        minimum=0, **DIFFUSION,
    )  # fmt: skip
    adapter_steps: int = option(
        "so many first steps train the adapter alone, the later ones the UNet, too", 0, minimum=0,
        **DIFFUSION,
    )  # fmt: skip
    ema_decay: float = option(
        "draw and save an exponential moving average of the weights, such as 0.9999; 0 for none",
        0.0, minimum=0, below=1, **DRAWING_STAGES,
    )  # fmt: skip
    adapter_hidden: int = option(
        "width of the adapter's hidden layer", 2048, minimum=1, **DIFFUSION
    )
    condition_length: int = option(
        "zero-pad conditions to this many tokens", 0, minimum=0, **DIFFUSION
    )
    feature_noise: float = option(
        "longest noise that training adds to a unit feature, 0 for none: diffusion 0; rae 0.5",
        None,
        minimum=0,
        **DECODER_STAGE,
    )
    width: int = option("channels of the ViT", 768, minimum=1, **ONE_PASS)
    layers: int = option("blocks of the ViT", 12, minimum=1, **ONE_PASS)
    heads: int = option("attention heads of a block of the ViT", 12, minimum=1, **ONE_PASS)
    picture_size: int = option("pixels a side of a drawing", 256, minimum=1, **ONE_PASS)
    patch_size: int = option(
        "pixels a side of what the ViT draws at once", 16, minimum=1, **ONE_PASS
    )
    perceptual_weight: float = option(
        "weight of the features of a drawing beside its pixels", 1.0, minimum=0, **ONE_PASS
    )
    adversarial_weight: float = option(
        "weight of a critic on the encoder's features, 0 for none", 0.0, minimum=0, **ONE_PASS
    )
    adversarial_start: int = option(
        "optimizer steps in which the critic learns before it counts", 0, minimum=0, **ONE_PASS
    )
