"""Operations of a decoder's training on a picture, by torch's counter on tensors without memory;
the encoder's by formula. What is computed a second time to save memory does not count."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from metamorph.config import RunConfig
from metamorph.costs.flops import ENCODER, Flops, encoder_flops
from metamorph.model.vision import VisionEncoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

UNET, VAE, TARGET = "unet and adapter", "vae", "its target"
VIT, LOOK = "vit", "encoder, of drawings"


def diffusion_flops(
    config: RunConfig,
    unet: "UNet2DConditionModel",
    adapter: nn.Module,
    vae: "AutoencoderKL",
    vision: VisionEncoder,
) -> dict[str, Flops]:
    """Of one picture of a run, by part. No operation runs, wherever the modules are.

    The frozen parts are left out where their results are cached; of a picture whose condition is
    dropped nothing is encoded. `unet`: before it is told to keep less for its backward. A student's
    `decoder.guidance_scale` is given: it says how often its teacher predicts.
    """
    is_student = config.stage == "distill"
    kept = 1 if is_student else 1 - config.decoder.condition_dropout
    cached = {VAE: config.decoder.latents, ENCODER: config.data.features}
    size = unet.config.sample_size
    side = size * 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.device("meta"):
        pixels = torch.empty(1, 3, side, side)
        noisy = torch.empty(1, unet.config.in_channels, size, size)
        features = torch.empty(1, vision.tokens_per_image, vision.width)
        timestep = torch.zeros(1)

    def predict() -> Tensor:
        return functional_call(unet, _outline(unet), (noisy, timestep, condition)).sample

    encoder = nn.Sequential(vae.encoder, vae.quant_conv or nn.Identity())
    _, encoding = _count(lambda: functional_call(encoder, _outline(encoder), pixels))
    condition, adapting = _count(lambda: functional_call(adapter, _outline(adapter), features))
    noise, predicting = _count(predict)
    _, backward = _count(lambda: noise.sum().backward())
    parts = {
        UNET: Flops(adapting + predicting, backward),
        VAE: Flops(encoding),
        ENCODER: encoder_flops(vision, kept),
    }
    if is_student:  # it draws, and the teacher beside it, with guidance in two branches
        steps = config.decoder.sampling_steps
        branches = 1 if config.decoder.guidance_scale == 1 else 2
        parts[UNET] = Flops(adapting + steps * predicting, steps * backward)
        parts[TARGET] = Flops(branches * config.decoder.teacher_steps * predicting)
        del parts[VAE]  # which is for drawing alone
    return {name: part for name, part in parts.items() if not cached.get(name)}


def one_pass_flops(
    config: RunConfig, vit: nn.Module, vision: VisionEncoder, looks_again: bool
) -> dict[str, Flops]:
    """As `diffusion_flops`, of a decoder that draws in one pass. `looks_again`: whether the encoder
    sees what was drawn; it gives gradients of its input alone, about as many as its forward. The
    critic on its features is small and left out."""
    with torch.device("meta"):
        features = torch.empty(1, vision.tokens_per_image, vision.width)
    drawn, forward = _count(lambda: functional_call(vit, _outline(vit), features))
    _, backward = _count(lambda: drawn.sum().backward())
    encoder = encoder_flops(vision, 1)
    parts = {VIT: Flops(forward, backward)}
    if looks_again:
        parts[LOOK] = Flops(encoder.forward, encoder.forward)
    return parts if config.data.features else parts | {ENCODER: encoder}


def _outline(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers without memory."""
    parameters = {
        name: torch.empty_like(parameter, device="meta", requires_grad=parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }
    buffers = {name: torch.empty_like(b, device="meta") for name, b in module.named_buffers()}
    return parameters | buffers


def _count(function: Callable) -> tuple:
    """What it returns, and how many operations it takes."""
    counter = FlopCounterMode(display=False)
    with counter:
        result = function()
    return result, counter.get_total_flops()
