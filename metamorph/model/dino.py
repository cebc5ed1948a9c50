"""DINOv2, with registers and without, and the vision transformers of DINOv3 as frozen encoders."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from metamorph.errors import UserError
from metamorph.model.encoder_kinds import DINOV2, DINOV2_REGISTERS, DINOV3
from metamorph.model.vit import ViTEncoder
from metamorph.model.vit_layer import LayerParts


class Dinov2Encoder(ViTEncoder):
    """DINOv2's last_hidden_state without the class token: after the last norm, as its authors give
    the features of patches.

    Positions that are learned for squares of one size are resized to those of another.
    """

    kind = DINOV2
    network = Dinov2Model
    parts = LayerParts("norm1", "attention", "o_proj", "attention_dropout", "norm2", is_scaled=True)
    layers_in = "encoder.layer"
    final_norm = "layernorm"

    @classmethod
    def tokens_before(cls, config: Dinov2Config) -> int:
        return 1


class Dinov2RegistersEncoder(Dinov2Encoder):
    """A DINOv2 with registers, which are dropped as the class token is."""

    kind = DINOV2_REGISTERS
    network = Dinov2WithRegistersModel

    @classmethod
    def tokens_before(cls, config: Dinov2WithRegistersConfig) -> int:
        return 1 + config.num_register_tokens


class Dinov3Encoder(ViTEncoder):
    """DINOv3's last_hidden_state without class token and registers, after the last norm.

    Positions are rotations, which squares of any size have.
    """

    kind = DINOV3
    network = DINOv3ViTModel
    parts = LayerParts("norm1", "attention", "o_proj", "dropout", "norm2", is_scaled=True)
    layers_in = "model.layer"
    final_norm = "norm"

    @classmethod
    def read_config(cls, data: dict) -> Any:
        config = super().read_config(data)
        head_size = config.hidden_size // config.num_attention_heads
        if head_size % 4:
            raise UserError(
                f"num_attention_heads: expected heads of a multiple of 4 numbers, which turn by "
                f"rows and by columns, got {head_size}"
            )
        return config

    @classmethod
    def tokens_before(cls, config: DINOv3ViTConfig) -> int:
        return 1 + config.num_register_tokens

    def turns(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        rotation = self.tower.rope_embeddings
        if rotation.inv_freq.dtype != torch.float32:  # rounded with the weights: made anew
            self.fill_buffers()
            rotation = self.tower.rope_embeddings.to(self.device)
        return rotation(pixel_values.to(self.tower.embeddings.cls_token.dtype))

    def fill_buffers(self) -> None:
        rotation = type(self.tower.rope_embeddings)(self.config)
        self.tower.rope_embeddings = rotation.train(self.tower.training)
