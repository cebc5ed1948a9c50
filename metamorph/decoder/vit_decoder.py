"""Visual features to pixels by a ViT: diffusers' `RAEDecoder` (representation autoencoders, arXiv
2510.11690), saved by itself.

This file needs PyTorch and diffusers alone, for it goes with a decoder's folder.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from torch import Tensor


class ViTDecoder(ModelMixin, ConfigMixin):
    """[B, tokens, C] unit features to pixels [B, 3, side, side], -1 to 1 where they can be shown.

    Its arguments are those of `RAEDecoder`, and its tensors those of the decoder in an
    `AutoencoderRAE`, whose encoder cannot hold features that are pooled and of unit length.
    Tokens, a square of any number, are resized to `num_patches`, of which each becomes
    `patch_size` x `patch_size` pixels.
    """

    _no_split_modules = ["ViTMAELayer"]

    @register_to_config
    def __init__(
        self,
        hidden_size: int,
        decoder_hidden_size: int,
        decoder_num_hidden_layers: int,
        decoder_num_attention_heads: int,
        decoder_intermediate_size: int,
        num_patches: int,
        patch_size: int,
        image_size: int,
    ):
        super().__init__()
        self.decoder = RAEDecoder(
            hidden_size=hidden_size,
            decoder_hidden_size=decoder_hidden_size,
            decoder_num_hidden_layers=decoder_num_hidden_layers,
            decoder_num_attention_heads=decoder_num_attention_heads,
            decoder_intermediate_size=decoder_intermediate_size,
            num_patches=num_patches,
            patch_size=patch_size,
            image_size=image_size,
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.decoder.unpatchify(self.decoder(features).logits)


def vit_decoder(
    feature_width: int, *, width: int, layers: int, heads: int, picture_size: int, patch_size: int
) -> ViTDecoder:
    """One with random weights for features of `feature_width`: `layers` blocks of `width` channels
    and `heads` heads, which draw pictures of `picture_size` pixels in patches of `patch_size`."""
    module = ViTDecoder(
        hidden_size=feature_width,
        decoder_hidden_size=width,
        decoder_num_hidden_layers=layers,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * width,
        num_patches=(picture_size // patch_size) ** 2,
        patch_size=patch_size,
        image_size=picture_size,
    )
    # Layers are made for inputs of variance 1, which a unit vector's components do not have: what a
    # feature says would drown in the positions that are added to it.
    with torch.no_grad():
        module.decoder.decoder_embed.weight.mul_(feature_width**0.5)
    return module
