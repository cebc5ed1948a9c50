"""SigLIP as the frozen encoder, and SigLIP 2 at a fixed resolution, which has the same files."""

import torch
from transformers import SiglipVisionModel

from metamorph.model.encoder_kinds import SIGLIP
from metamorph.model.vit import ViTEncoder
from metamorph.model.vit_layer import LayerParts

SIGLIP_LAYER = LayerParts("layer_norm1", "self_attn", "out_proj", "dropout", "layer_norm2")


class SiglipEncoder(ViTEncoder):
    """SigLIP tokens before its post-layernorm, hidden_states[-1], as in the paper.

    Post-layernorm and pooling head are kept for saving but never run. The last layer computes only
    the tokens that the pooling reads: 256 of 729 for 27 x 27 to 8 x 8.
    """

    kind = SIGLIP
    network = SiglipVisionModel
    parts = SIGLIP_LAYER

    def fill_buffers(self) -> None:
        embeddings = self.tower.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
