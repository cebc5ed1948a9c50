"""What every part of this project asks of a frozen encoder: pictures in, a small grid of unit
vectors out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.errors import UserError, within
from metamorph.model.encoder_kinds import BICUBIC, HALF, EncoderKind
from metamorph.model.preprocessing import (
    FILE,
    check_size,
    read_preprocessing,
    write_preprocessing,
)
from metamorph.model.unfilled import unfilled
from metamorph.model.weights import read_json
from metamorph.pixels import Square
from metamorph_kernels import pool_normalize


class VisionEncoder(nn.Module):
    """A frozen network whose last square of features is pooled to grid x grid and L2-normalised.

    Section 3 of MetaMorph (arXiv 2412.14164). `metamorph/model/encoders.py` lists the kinds; each
    says what is not implemented here. Parameters start frozen; `requires_grad_(True)` thaws them.

    Args:
        image_size: S, the side in pixels of the square that pictures are squashed to.
        side: of the square of features that `encode` gives.
        grid: of the features that `forward` gives, at most `side`.
        mean, std: of the three colours in 0..1, by which pixels are normalised.
        resample: how pictures are squashed.
    """

    kind: EncoderKind

    def __init__(
        self,
        image_size: int,
        side: int,
        grid: int,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Image.Resampling = BICUBIC,
    ):
        super().__init__()
        if not 1 <= grid <= side:
            raise UserError(f"grid: expected 1 to {side}, the encoder's own grid, got {grid}")
        self.image_size = image_size
        self.grid = grid
        self.preprocess_by(mean, std, resample)

    def preprocess_by(
        self,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Image.Resampling = BICUBIC,
    ) -> None:
        """Take the settings of `preprocess`, which `read_preprocessing` gives by these names."""
        self.mean, self.std = tuple(mean), tuple(std)
        self.square = Square(self.image_size, resample)

    @classmethod
    def from_config(cls, data: dict, grid: int, **preprocessing: Any) -> Self:
        """An encoder of the sizes in a config.json, with random weights, and with what
        `read_preprocessing` gives. Raises `UserError`."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """C, the width of a visual feature."""
        raise NotImplementedError

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Features before they are pooled, [B, side * side, C], of pixel values [B, 3, S, S]."""
        raise NotImplementedError

    def facts(self) -> list[Any]:
        """What decides the features beside the weights, as JSON can have it."""
        raise NotImplementedError

    def deciding_weights(self) -> Mapping[str, Tensor]:
        """The weights that decide the features."""
        raise NotImplementedError

    def operations(self) -> int:
        """Floating-point operations of a picture's features, of matrix products and convolutions
        alone."""
        raise NotImplementedError

    def working_bytes(self, products: int) -> int:
        """About how many bytes a picture's features need at once beside weights, where matrix
        products and convolutions read and write `products` bytes an element."""
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        """Take the weights of a folder, which are checked. Raises `UserError`."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the weights and the config.json."""
        raise NotImplementedError

    @property
    def tokens_per_image(self) -> int:
        return self.grid * self.grid

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

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

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Visual features [B, grid * grid, C], unit length, of pixel values [B, 3, S, S]."""
        if len(pixel_values) == 0:  # a row of text alone; not every network takes it
            weight = next(self.parameters())
            return weight.new_zeros(0, self.tokens_per_image, self.width)
        return pool_normalize(self.encode(pixel_values), self.grid)

    @classmethod
    def outline(cls, folder: str | Path, grid: int) -> Self:
        """An encoder as `from_pretrained` loads it, but for the weights. Raises `UserError`."""
        folder = Path(folder)
        data = read_json(folder / "config.json")
        how = read_preprocessing(folder / FILE, cls.kind)
        with within(folder / "config.json"):
            encoder = cls.from_config(data, grid, **how)
        check_size(how["image_size"], encoder.image_size, folder / FILE)
        return encoder

    @classmethod
    def from_pretrained(cls, folder: str | Path, grid: int) -> Self:
        """Load a folder of this kind; `open_vision` finds out which kind a folder is.

        What no preprocessor_config.json says is as `EncoderKind` has it. Raises UserError if the
        folder holds another model or its files do not fit together.
        """
        with unfilled():
            encoder = cls.outline(folder, grid)
        encoder.load(Path(folder))
        return encoder

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that `from_pretrained` loads, transformers' own files for what is of
        transformers."""
        folder = Path(folder)
        self.save_preprocessing(folder / FILE)
        self.save(folder)

    def save_preprocessing(self, path: Path) -> None:
        """Write how pictures become squares."""
        write_preprocessing(path, self.square, list(self.mean), list(self.std))
