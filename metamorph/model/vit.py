"""Vision transformers of transformers as frozen encoders, with the last layer where it is read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from metamorph.errors import UserError, in_words, shown
from metamorph.model.encoder_files import deciding, read_tower, tower_facts
from metamorph.model.encoder_kinds import EncoderKind
from metamorph.model.vision import VisionEncoder
from metamorph.model.vit_layer import LayerParts
from metamorph.model.weights import load_module, write_json, write_tensors
from metamorph_kernels import pool_normalize, tokens_read

LARGEST = {  # sizes of an encoder; a damaged number would take hours or all memory
    "num_hidden_layers": 1000,
    "hidden_size": 100_000,
    "intermediate_size": 400_000,
    "mlp_ratio": 100,
    "num_attention_heads": 10_000,
    "num_patches": 1_000_000,
    "image_size": 10_000,
    "patch_size": 10_000,
}
LARGEST_REGISTERS = 10_000


def is_served(kind: EncoderKind) -> bool:
    """Whether the installed transformers has its network with the parts that are read here."""
    release = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
    return release >= kind.since


class ViTEncoder(VisionEncoder):
    """The tokens of patches that a network of transformers gives in the end, after the norm there
    where `final_norm` names it; what else it has is kept for saving but never run.

    The last layer computes only the tokens that the pooling reads. Tokens before those of patches
    (class, registers) are seen by the others and dropped.

    Args:
        config: of transformers.
        image_size: S, where `kind` takes any size; else, and without it, as `config` has it.
        grid, mean, std, resample: as `VisionEncoder` has them, the last three of `kind`.
    """

    network: ClassVar[type[PreTrainedModel]]
    parts: ClassVar[LayerParts]
    layers_in = "encoder.layers"
    final_norm: ClassVar[str | None] = None

    def __init__(
        self,
        config: Any,
        grid: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resample: Image.Resampling | None = None,
        image_size: int | None = None,
    ):
        if image_size is None or not self.kind.is_any_size:
            image_size = self.size_of(config)
        if config.patch_size > image_size:
            raise UserError(
                f"patch_size: {config.patch_size} pixels do not fit image_size, {image_size}"
            )
        side = image_size // config.patch_size
        if resample is None:
            resample = self.kind.resample
        mean, std = mean or self.kind.mean, std or self.kind.std
        super().__init__(image_size, side, grid, mean, std, resample)
        self.config, self.patches = config, side**2
        model = self.network(config)
        # Older releases of transformers wrap the tower once more.
        self.tower: Any = getattr(model, "vision_model", model)
        self.before = self.tokens_before(config)
        # On the CPU although `from_pretrained` builds the rest on the meta device.
        read = torch.tensor(tokens_read(side, grid), device="cpu") + self.before
        self.register_buffer("tokens_read", read, persistent=False)
        self.reads_all = len(read) == self.patches
        if not self.reads_all:
            self.parts.check(self.layers[-1], self.kind.name)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_config(cls, data: dict, grid: int, **preprocessing: Any) -> "ViTEncoder":
        """Of the config.json of the network, or of a model with text, of which it takes the
        vision half."""
        return cls(cls.read_config(data), grid, **preprocessing)

    @classmethod
    def read_config(cls, data: dict) -> Any:
        """The vision half of a config.json. UserError for another model, for sizes that no encoder
        has, or where transformers is too old for its network."""
        name = cls.kind.name
        if data.get("model_type") not in cls.kind.model_types:
            raise UserError(f"expected a {name} model, got {shown(data.get('model_type'))}")
        if not is_served(cls.kind):
            oldest = ".".join(map(str, cls.kind.since))
            raise UserError(
                f"a {name} encoder needs transformers {oldest} or newer, and here is "
                f"{transformers.__version__}"
            )
        written = data.get("vision_config", data)
        if not isinstance(written, dict):
            raise UserError(f"vision_config: expected an object, got {shown(written)}")
        for key, most in LARGEST.items():
            size = written.get(key, 1)
            if type(size) is not int or not 1 <= size <= most:
                raise UserError(f"{key}: expected a whole number, 1 to {most}, got {shown(size)}")
        eps = written.get("layer_norm_eps", 0)  # transformers 5.0 itself would take any
        if type(eps) not in (int, float) or not 0 <= eps <= 1:
            raise UserError(f"layer_norm_eps: expected a number, 0 to 1, got {shown(eps)}")
        try:
            config: Any = cls.network.config_class(**written)
        except Exception as error:  # what checks the rest raises nothing narrower
            raise UserError(f"not the sizes of a {name} encoder: {in_words(error)}") from error
        registers = getattr(config, "num_register_tokens", 0)
        if not 0 <= registers <= LARGEST_REGISTERS:
            raise UserError(
                f"num_register_tokens: expected 0 to {LARGEST_REGISTERS}, got {registers}"
            )
        heads = config.num_attention_heads
        if config.hidden_size % heads:
            raise UserError(
                f"num_attention_heads: {heads} does not divide hidden_size, {config.hidden_size}"
            )
        if config.num_channels != 3:
            raise UserError(f"num_channels: expected 3 (RGB), got {config.num_channels}")
        if config.hidden_act not in ACT2FN:
            raise UserError(
                f"hidden_act: {shown(config.hidden_act)} is no activation of transformers"
            )
        return config

    @classmethod
    def size_of(cls, config: Any) -> int:
        """The side in pixels of the square that a config.json is for."""
        return config.image_size

    @classmethod
    def tokens_before(cls, config: Any) -> int:
        """How many tokens come before those of patches."""
        return 0

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def layers(self) -> Any:
        return self.tower.get_submodule(self.layers_in)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Features [B, patches, C] of pixel values [B, 3, S, S]."""
        return self._features(pixel_values)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As `VisionEncoder.forward`; the last layer is computed where it is read."""
        if self.reads_all or len(pixel_values) == 0:
            return super().forward(pixel_values)
        return pool_normalize(self._features(pixel_values, self.tokens_read), self.grid)

    def _features(self, pixel_values: Tensor, read: Tensor | None = None) -> Tensor:
        """[B, patches, C]; only those of the tokens `read` are right, if they are given."""
        pixel_values = pixel_values.to(self.device)
        turns = self.turns(pixel_values)
        how = {} if turns is None else {"position_embeddings": turns}
        hidden = self.embed(pixel_values)
        *earlier, last = self.layers
        for layer in earlier:
            hidden = layer(hidden, None, **how)
        if read is None:
            hidden = last(hidden, None, **how)
        else:
            hidden = self.parts.compute(last, hidden, read, turns)
        patches = hidden[:, self.before :]
        return patches if self.final_norm is None else getattr(self.tower, self.final_norm)(patches)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The first layer's input [B, tokens, C]."""
        return self.tower.embeddings(pixel_values)

    def turns(self, pixel_values: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and sin [patches, head dim] by which layers rotate queries and keys, if they do."""
        return None

    def facts(self) -> list[Any]:
        how = {
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "resample": self.square.resample,
        }
        return tower_facts(self.kind, self.config.to_dict(), how, self.grid)

    def deciding_weights(self) -> dict[str, Tensor]:
        return deciding(self.kind, self.tower.state_dict())

    def operations(self) -> int:
        """Its last layer computes queries, output and MLP for the tokens alone that are read."""
        width = self.config.hidden_size
        tokens = self.before + self.patches
        mlp = self._mlp_weights()

        def layer(read: int) -> int:
            every = 2 * tokens * 2 * width * width  # keys and values
            return every + 2 * read * (2 * width * width + mlp) + 4 * read * tokens * width

        embed = 2 * self.patches * width * 3 * self.config.patch_size**2
        last = tokens if self.reads_all else len(self.tokens_read)
        return embed + (self.config.num_hidden_layers - 1) * layer(tokens) + layer(last)

    def working_bytes(self, products: int) -> int:
        """The residual stream and its sum in float32; the MLP's results, one for each matrix."""
        streams = 2 * self.config.hidden_size * torch.float32.itemsize
        results = self._mlp_weights() // self.config.hidden_size
        return (self.before + self.patches) * (streams + results * products)

    def _mlp_weights(self) -> int:
        """Elements of a layer's MLP, which are of two matrices, or of three where it is gated."""
        return sum(w.numel() for w in self.layers[-1].mlp.parameters() if w.ndim == 2)

    def load(self, folder: Path) -> None:
        load_module(self.tower, read_tower(folder, self.kind), folder)
        self.fill_buffers()

    def fill_buffers(self) -> None:
        """Set what the network holds beside its weights, which no file says."""

    def save(self, folder: Path) -> None:
        tensors = self.tower.state_dict()
        prefix = self.kind.file_prefix
        write_tensors(folder, {prefix + name: tensor for name, tensor in tensors.items()})
        config = self.config.to_dict() | {"architectures": [self.network.__name__]}
        write_json(folder / "config.json", config)
