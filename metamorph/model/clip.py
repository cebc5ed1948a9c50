"""CLIP's vision transformer as the frozen encoder."""

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from metamorph.model.encoder_kinds import CLIP
from metamorph.model.siglip import SIGLIP_LAYER
from metamorph.model.vit import ViTEncoder


class ClipEncoder(ViTEncoder):
    """CLIP's last_hidden_state without the class token: before its post-layernorm, which CLIP
    itself gives the class token alone."""

    kind = CLIP
    network = CLIPVisionModel
    parts = SIGLIP_LAYER

    @classmethod
    def tokens_before(cls, config: CLIPVisionConfig) -> int:
        return 1

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.tower.pre_layrnorm(self.tower.embeddings(pixel_values))

    def fill_buffers(self) -> None:
        embeddings = self.tower.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
