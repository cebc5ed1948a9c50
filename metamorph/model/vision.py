"""The frozen SigLIP encoder: pictures in, a small grid of unit vectors out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.activations import ACT2FN

from metamorph.errors import UserError, in_words, shown, within
from metamorph.model.encoder_files import (
    DEFAULT_MEAN,
    DEFAULT_STD,
    TOWER_PREFIX,
    read_preprocessing,
    read_tower,
)
from metamorph.model.unfilled import unfilled
from metamorph.model.weights import load_module, read_json, write_json, write_tensors
from metamorph.pixels import Square
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


class VisionEncoder(nn.Module):
    """SigLIP tokens before its post-layernorm, pooled to grid x grid and L2-normalised.

    Section 3 of MetaMorph (arXiv 2412.14164). Parameters start frozen; `requires_grad_(True)`
    thaws them. Post-layernorm and pooling head are kept for saving but never run. The last layer
    computes only the tokens that the pooling reads: 256 of 729 for 27 x 27 to 8 x 8.
    """

    def __init__(
        self,
        config: SiglipVisionConfig,
        grid: int,
        mean: Sequence[float] = DEFAULT_MEAN,
        std: Sequence[float] = DEFAULT_STD,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ):
        super().__init__()
        side = config.image_size // config.patch_size
        if not 1 <= grid <= side:
            raise UserError(f"grid: expected 1 to {side}, the encoder's own grid, got {grid}")
        self.config = config
        self.grid = grid
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.square = Square(config.image_size, resample)  # what pictures are squashed to
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

    @property
    def width(self) -> int:
        """C, the width of a visual feature."""
        return self.config.hidden_size

    @property
    def image_size(self) -> int:
        """S, the side in pixels of the square that `forward` takes."""
        return self.config.image_size

    @property
    def tokens_per_image(self) -> int:
        return self.grid * self.grid

    def preprocess(self, images: list[Image.Image]) -> Tensor:
        """Turn pictures of any size and mode into pixel values [B, 3, S, S], fp32, on the CPU.

        Each is taken as a viewer shows it (`as_shown`), squashed to the square as SigLIP's own
        processor does it, scaled to 0..1 and normalised by the encoder's mean and deviation.
        """
        squares = torch.empty(len(images), self.image_size, self.image_size, 3, dtype=torch.uint8)
        for slot, image in zip(squares, images, strict=True):
            slot.copy_(torch.from_numpy(np.array(self.square(image))))
        return self.normalize(squares)

    def normalize(self, squares: Tensor) -> Tensor:
        """Pixel values [B, 3, S, S], fp32, of pictures that are squares already, uint8
        [B, S, S, 3]."""
        mean, std = (squares.new_tensor(v, dtype=torch.float32) for v in (self.mean, self.std))
        return ((squares / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def encode(self, pixel_values: Tensor) -> Tensor:
        """SigLIP's hidden_states[-1], [B, patches, C], of pixel values [B, 3, S, S]."""
        return self.tower.encoder(inputs_embeds=self._embed(pixel_values)).last_hidden_state

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Visual features [B, grid * grid, C], unit length, of pixel values [B, 3, S, S]."""
        if len(pixel_values) == 0:  # a row of text alone; SigLIP's attention cannot reshape it
            weight = self.tower.embeddings.patch_embedding.weight
            return weight.new_zeros(0, self.tokens_per_image, self.width)
        if self.reads_all:
            return pool_normalize(self.encode(pixel_values), self.grid)
        *earlier, last = self.tower.encoder.layers
        hidden = self._embed(pixel_values)
        for layer in earlier:
            hidden = layer(hidden, None)
        return pool_normalize(_last_layer(last, hidden, self.tokens_read), self.grid)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """Patch and position embeddings [B, patches, C]."""
        weight = self.tower.embeddings.patch_embedding.weight
        return self.tower.embeddings(pixel_values.to(weight.device))

    @classmethod
    def from_pretrained(cls, folder: str | Path, grid: int) -> "VisionEncoder":
        """Load a SiglipVisionModel folder, or the vision half of a SiglipModel folder.

        Without a preprocessor_config.json, mean and standard deviation are 0.5. Raises UserError
        if the folder holds another model or its files do not fit together.
        """
        folder = Path(folder)
        data = read_json(folder / "config.json")
        with within(folder / "config.json"):
            config = vision_config(data)
        how = read_preprocessing(folder / "preprocessor_config.json", config.image_size)
        with unfilled(), within(folder):
            encoder = cls(config, grid, **how)
        load_module(encoder.tower, read_tower(folder), folder)
        embeddings = encoder.tower.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
        return encoder

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the config, weights and preprocessor config of a SiglipVisionModel."""
        folder = Path(folder)
        tensors = self.tower.state_dict()
        write_tensors(folder, {TOWER_PREFIX + name: tensor for name, tensor in tensors.items()})
        size = {"height": self.image_size, "width": self.image_size}
        preprocessor = {
            "image_processor_type": "SiglipImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size,
            "resample": int(self.square.resample),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        write_json(folder / "preprocessor_config.json", preprocessor)
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
    if data.get("model_type") not in ("siglip", "siglip_vision_model"):
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
