"""SigLIP 2 of any resolution (NaFlex) as the frozen encoder, on squares."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from metamorph.errors import UserError
from metamorph.model.encoder_kinds import SIGLIP2_NAFLEX
from metamorph.model.preprocessing import write_preprocessing
from metamorph.model.siglip import SIGLIP_LAYER
from metamorph.model.vit import ViTEncoder


class NaflexEncoder(ViTEncoder):
    """Tokens before the post-layernorm, as `SiglipEncoder` gives them, of a square grid of patches.

    NaFlex takes pictures of any shape, as a list of patches and how many lie in a column and in a
    row. Here all are squares, so that nothing is padded and nothing masked.
    """

    kind = SIGLIP2_NAFLEX
    network = Siglip2VisionModel
    parts = SIGLIP_LAYER

    @classmethod
    def read_config(cls, data: dict) -> Any:
        config = super().read_config(data)
        if math.isqrt(config.num_patches) ** 2 != config.num_patches:
            raise UserError(f"num_patches: expected a square number, got {config.num_patches}")
        return config

    @classmethod
    def size_of(cls, config: Siglip2VisionConfig) -> int:
        return math.isqrt(config.num_patches) * config.patch_size

    def embed(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.tower.embeddings
        side, patch = math.isqrt(self.patches), self.config.patch_size
        whole = pixel_values[..., : side * patch, : side * patch]
        patches = whole.unflatten(3, (side, patch)).unflatten(2, (side, patch))
        # [B, 3, rows, patch, columns, patch] to each patch's pixels, and each pixel's colours
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        weight = embeddings.position_embedding.weight  # [num_patches, C]
        known = math.isqrt(len(weight))
        positions = embeddings.resize_positional_embeddings(
            weight.unflatten(0, (known, known)), torch.tensor([[side, side]]), self.patches
        )
        return embeddings.patch_embedding(patches.to(weight.dtype)) + positions

    def save_preprocessing(self, path: Path) -> None:
        how = (list(self.mean), list(self.std))
        write_preprocessing(path, self.square, *how, patch_size=self.config.patch_size)
