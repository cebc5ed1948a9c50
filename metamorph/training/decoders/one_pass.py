"""Teaches a ViT to draw what visual features say in one pass (representation autoencoders, arXiv
2510.11690), on features with noise, so that predicted ones decode as well as real ones."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metamorph.config import DecoderConfig, RunConfig
from metamorph.costs.decoder_flops import one_pass_flops
from metamorph.decoder.one_pass import OnePassDecoder
from metamorph.decoder.vit_decoder import vit_decoder
from metamorph.model.drawn_pixels import DrawnPixels
from metamorph.model.encoder_identity import identity
from metamorph.model.opening import open_encoder
from metamorph.pixels import Square
from metamorph.training.decoders.feature_noise import add_noise, draw_noise
from metamorph.training.decoders.one_pass_objective import Critic, feature_error
from metamorph.training.decoders.one_pass_rules import check_patches
from metamorph.training.draws import Draws
from metamorph.training.lora import plain
from metamorph.training.parallel import recompute
from metamorph.training.picture_batch import PictureBatch, feature_cache


class OnePassTrainer(nn.Module):
    """Frozen encoder, trained ViT, the critic if it is asked for, and their losses."""

    def __init__(self, config: RunConfig):
        super().__init__()
        decoder = config.decoder
        self.vision = open_encoder(config.model)
        check_patches(decoder, self.vision.grid)
        torch.manual_seed(config.seed)  # all that is trained starts from scratch
        self.vit = vit_decoder(
            self.vision.width,
            width=decoder.width,
            layers=decoder.layers,
            heads=decoder.heads,
            picture_size=decoder.picture_size,
            patch_size=decoder.patch_size,
        )
        self.drawn_pixels = DrawnPixels(self.vision, decoder.picture_size)
        self.critic = Critic(self.vision.width) if decoder.adversarial_weight else None
        self.looks_again = bool(decoder.perceptual_weight or decoder.adversarial_weight)
        self.settings = decoder
        self.square = Square(decoder.picture_size, Image.Resampling.LANCZOS, decoder.fit)
        self.encoder_square = replace(self.vision.square, fit=decoder.fit)
        self.encoder = identity(self.vision)
        self.feature_cache = feature_cache(config, self.encoder, self.vision.grid)
        self.latent_cache = None  # pixels are what it learns from
        # Of a picture, by part.
        self.flops = one_pass_flops(config, self.vit, self.vision, self.looks_again)
        for block in self.blocks():
            recompute(block, config.training.activation_checkpointing, False)

    def blocks(self) -> list[nn.Module]:
        """The parts that are compiled, computed again, and gathered where weights are sharded, each
        alone."""
        return list(self.vit.decoder.decoder_layers)

    def forward(self, batch: PictureBatch, draw: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step, and what to log of it: `pixel_error`, mean difference in 0..1,
        `feature_error`, 1 - cosine of the features of the drawing, and the critic's two. In eval
        mode there is no noise and no critic, and features are looked at in any case."""
        settings = self.settings
        with torch.no_grad():
            everyone = torch.arange(len(batch), device=batch.device)
            features = batch.visual_features(self.vision, everyone).float()  # [B, tokens, C]
        seen = features
        if settings.feature_noise and self.training:
            seen = add_noise(features, draw_noise(features.shape, settings.feature_noise, draw))
        drawn = self.vit(seen).float() / 2 + 0.5  # [B, 3, side, side], 0 to 1
        loss = F.l1_loss(drawn, wanted(batch))
        errors = {"pixel_error": loss}
        if self.looks_again or not self.training:
            redrawn = self.vision(self.drawn_pixels(drawn))
            errors["feature_error"] = feature_error(redrawn, features)
            loss = loss + settings.perceptual_weight * errors["feature_error"]
            if self.critic is not None and self.training:
                errors["critic_error"], errors["reproach"] = self.critic(features, redrawn)
                weight = settings.adversarial_weight * (draw.step >= settings.adversarial_start)
                loss = loss + errors["critic_error"] + weight * errors["reproach"]
        return loss, {name: error.detach() for name, error in errors.items()}

    def decoder(self, config: DecoderConfig) -> OnePassDecoder | None:
        """In the first process: what draws by the weights as they are. All processes call this."""
        vit = plain(self.vit)
        if vit is None:
            return None
        return OnePassDecoder(
            vit, tokens_per_image=self.vision.tokens_per_image, encoder=self.encoder
        )


def wanted(batch: PictureBatch) -> Tensor:
    """Pixels [B, 3, side, side] that should be drawn, 0 to 1."""
    if batch.pixels is None:
        raise ValueError("batch: it has no pixels, which a one-pass decoder learns from")
    return batch.pixels.permute(0, 3, 1, 2) / 255
