"""What every training of a UNet on a VAE's latents does alike."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.costs.decoder_flops import diffusion_flops
from metamorph.data.latents import open_latents
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.latents import latent_square, vae_identity
from metamorph.decoder.parts import load_part, unet_blocks
from metamorph.model.encoder_identity import identity
from metamorph.model.vision import VisionEncoder
from metamorph.training.draws import Draws
from metamorph.training.lora import UNET_LAYERS, add_adapters
from metamorph.training.picture_batch import PictureBatch, feature_cache


class LatentTrainer(nn.Module):
    """Frozen encoder and VAE, where their results are not cached, and the UNet that is trained,
    whole or by adapters."""

    adapter: FeatureAdapter

    def __init__(
        self,
        config: RunConfig,
        vision: VisionEncoder,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
    ):
        super().__init__()
        decoder = config.decoder
        vae.requires_grad_(False).to(memory_format=torch.channels_last)
        self.latent_scale = vae.config.scaling_factor
        self.encoder, self.tokens_per_image = identity(vision), vision.tokens_per_image
        self.feature_width = vision.width
        self.encoder_square = replace(vision.square, fit=decoder.fit)
        self.square = latent_square(vae, unet.config.sample_size, decoder.fit)
        self.feature_cache = feature_cache(config, self.encoder, vision.grid)
        self.latent_cache = None
        if decoder.latents:
            self.latent_cache = open_latents(
                decoder.latents, vae_identity(vae), self.square, config.data.verify_features
            )
        self.vision = vision if self.feature_cache is None else None
        self.vae = vae if self.latent_cache is None else None
        self.unet = unet.train().to(memory_format=torch.channels_last)  # convolutions run faster so

    def make_ready(self, config: RunConfig, vision: VisionEncoder, vae: AutoencoderKL) -> None:
        """Once there is an `adapter`: LoRA and checkpointing, and the operations of a picture."""
        if config.training.lora_rank:
            add_adapters(self.unet, config, UNET_LAYERS)
        # Of a picture, by part.
        self.flops = diffusion_flops(config, self.unet, self.adapter, vae, vision)
        if config.training.activation_checkpointing == "full":
            self.unet.enable_gradient_checkpointing()

    @torch.no_grad()
    def latents(self, batch: PictureBatch, draw: Draws) -> Tensor:
        """Scaled samples [B, 4, h, w] of the VAE's posterior; `draw` gives normal numbers."""
        mean, std = batch.posterior(self.vae)
        return (mean + std * draw(torch.randn, mean.shape).to(mean)) * self.latent_scale

    def blocks(self) -> list[nn.Module]:
        """The parts that are compiled, and gathered where weights are sharded, each alone."""
        return unet_blocks(self.unet)

    def saved_vae(self, folder: Path) -> AutoencoderKL:
        """The VAE of what is saved: where latents are cached, it is read from `folder` again."""
        if self.vae is not None:
            return self.vae
        return load_part(AutoencoderKL, folder / "vae").to(self.unet.device)
