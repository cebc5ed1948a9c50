"""SigLIP as the frozen encoder: transformers' own, with the last layer where it is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.activations import ACT2FN

from metamorph.errors import UserError, in_words, shown
from metamorph.model.encoder_files import (
    DEFAULT_MEAN,
    DEFAULT_STD,
    SIGLIP,
    TOWER_PREFIX,
    read_tower,
    siglip_facts,
    siglip_weights,
)
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import load_module, write_json, write_tensors
from metamorph_kernels import pool_normalize, tokens_read

LARGEST = {  # sizes of an encoder; a damaged number would take hours or all memory
    "num_hidden_layers": 1000,
    "hidden_size": 100_000,
    "intermediate_size": 400_000,
    "num_attention_heads": 10_000,
    "image_size": 10_000,
    "patch_size": 10_000,
}
# What `_last_layer` computes with; a layer made of anything else is refused.
LAYER_PARTS = {"layer_norm1", "self_attn", "layer_norm2", "mlp"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "out_proj"}


class SiglipEncoder(VisionEncoder):
    """SigLIP tokens before its post-layernorm, as in the paper.

    Post-layernorm and pooling head are kept for saving but never run. The last layer computes only
    the tokens that the pooling reads: 256 of 729 for 27 x 27 to 8 x 8.
    """

    def __init__(
        self,
        config: SiglipVisionConfig,
        grid: int,
        mean: Sequence[float] = DEFAULT_MEAN,
        std: Sequence[float] = DEFAULT_STD,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ):
        side = config.image_size // config.patch_size
        super().__init__(config.image_size, side, grid, mean, std, resample)
        self.config = config
        model = SiglipVisionModel(config)
        # Older releases of transformers wrap the tower once more.
        self.tower = getattr(model, "vision_model", model)
        # On the CPU although `from_pretrained` builds the rest on the meta device.
        read = torch.tensor(tokens_read(side, grid), device="cpu")
        self.register_buffer("tokens_read", read, persistent=False)
        self.reads_all = len(read) == side * side
        if not self.reads_all:
            _check_layer(self.tower.encoder.layers[-1])
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_config(cls, data: dict, grid: int) -> "SiglipEncoder":
        """Of the config.json of a SiglipVisionModel, or of a SiglipModel, whose vision half it
        takes."""
        return cls(vision_config(data), grid)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    def encode(self, pixel_values: Tensor) -> Tensor:
        """SigLIP's hidden_states[-1], [B, patches, C], of pixel values [B, 3, S, S]."""
        return self.tower.encoder(inputs_embeds=self._embed(pixel_values)).last_hidden_state

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As `VisionEncoder.forward`; the last layer is computed where it is read."""
        if self.reads_all or len(pixel_values) == 0:
            return super().forward(pixel_values)
        *earlier, last = self.tower.encoder.layers
        hidden = self._embed(pixel_values)
        for layer in earlier:
            hidden = layer(hidden, None)
        return pool_normalize(_last_layer(last, hidden, self.tokens_read), self.grid)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """Patch and position embeddings [B, patches, C]."""
        return self.tower.embeddings(pixel_values.to(self.device))

    def facts(self) -> list[Any]:
        preprocessing = {"mean": self.mean, "std": self.std, "resample": self.square.resample}
        return siglip_facts(self.config.to_dict(), preprocessing, self.grid)

    def deciding_weights(self) -> dict[str, Tensor]:
        return siglip_weights(self.tower.state_dict())

    def operations(self) -> int:
        """Its last layer computes queries, output and MLP for the tokens alone that are read."""
        width, inner = self.config.hidden_size, self.config.intermediate_size
        patches = (self.config.image_size // self.config.patch_size) ** 2
        patch_size = self.config.num_channels * self.config.patch_size**2

        def layer(tokens: int) -> int:
            every = 2 * patches * 2 * width * width  # keys and values
            read = 2 * tokens * (2 * width * width + 2 * width * inner)
            return every + read + 4 * tokens * patches * width

        embed = 2 * patches * width * patch_size
        layers = (self.config.num_hidden_layers - 1) * layer(patches)
        return embed + layers + layer(len(self.tokens_read))

    def working_bytes(self, products: int) -> int:
        """The residual stream and its sum in float32; the MLP's two results."""
        patches = (self.config.image_size // self.config.patch_size) ** 2
        streams = 2 * self.config.hidden_size * torch.float32.itemsize
        return patches * (streams + 2 * self.config.intermediate_size * products)

    def load(self, folder: Path) -> None:
        load_module(self.tower, read_tower(folder), folder)
        embeddings = self.tower.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]

    def save(self, folder: Path) -> None:
        tensors = self.tower.state_dict()
        write_tensors(folder, {TOWER_PREFIX + name: tensor for name, tensor in tensors.items()})
        config = self.config.to_dict() | {"architectures": ["SiglipVisionModel"]}
        write_json(folder / "config.json", config)


def _check_layer(layer: Any) -> None:
    """Raise UserError unless a layer is made of the parts that `_last_layer` computes with."""
    attention = getattr(layer, "self_attn", nn.Module())
    parts, attention_parts = (
        {name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))}
        for module in (layer, attention)
    )
    if parts != LAYER_PARTS or attention_parts != ATTENTION_PARTS:
        raise UserError(
            f"transformers {transformers.__version__}: expected a SigLIP layer of "
            f"{sorted(LAYER_PARTS)} and attention of {sorted(ATTENTION_PARTS)}, "
            f"got {sorted(parts)} and {sorted(attention_parts)}"
        )


def _last_layer(layer: Any, hidden: Tensor, read: Tensor) -> Tensor:
    """A SigLIP layer over hidden [B, patches, C], computed for the tokens `read`; others stay."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)  # whole: every token is a key and a value
    queries, keys, values = (  # each [B, heads, tokens, head dim]
        projection(tokens).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        for projection, tokens in (
            (attention.q_proj, normed.index_select(1, read)),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        dropout_p=attention.dropout if attention.training else 0.0,
        scale=attention.scale,
    )
    states = hidden.index_select(1, read)  # [B, read, C]
    states = states + attention.out_proj(attended.transpose(1, 2).flatten(2))
    states = states + layer.mlp(layer.layer_norm2(states))
    return hidden.index_copy(1, read, states)


def vision_config(data: dict) -> SiglipVisionConfig:
    """The vision half of the config.json of a SigLIP. UserError for another model, or for sizes
    that no encoder has."""
    if data.get("model_type") not in SIGLIP:
        raise UserError(f"expected a SigLIP model, got {shown(data.get('model_type'))}")
    written = data.get("vision_config", data)
    if not isinstance(written, dict):
        raise UserError(f"vision_config: expected an object, got {shown(written)}")
    for name, most in LARGEST.items():
        size = written.get(name, 1)
        if type(size) is not int or not 1 <= size <= most:
            raise UserError(f"{name}: expected a whole number, 1 to {most}, got {shown(size)}")
    try:
        config = SiglipVisionConfig(**written)
    except Exception as error:  # the hub's package, which checks the rest, raises nothing narrower
        raise UserError(f"not the sizes of a SigLIP encoder: {in_words(error)}") from error
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"num_attention_heads: {config.num_attention_heads} does not divide hidden_size, "
            f"{config.hidden_size}"
        )
    if config.patch_size > config.image_size:
        raise UserError(
            f"patch_size: {config.patch_size} pixels do not fit image_size, {config.image_size}"
        )
    if config.num_channels != 3:
        raise UserError(f"num_channels: expected 3 (RGB), got {config.num_channels}")
    if config.hidden_act not in ACT2FN:
        raise UserError(f"hidden_act: {shown(config.hidden_act)} is no activation of transformers")
    return config
