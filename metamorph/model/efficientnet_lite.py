"""EfficientNet-Lite as the frozen encoder: small, and to be had where no SigLIP is."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metamorph.errors import UserError, shown, within
from metamorph.model.encoder_kinds import BICUBIC, EFFICIENTNET_LITE, HALF
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import load_module, read_tensors, write_json, write_tensors

LARGEST = {  # a damaged number would take hours or all memory
    "image_size": 10_000,
    "stem_width": 10_000,
    "head_width": 100_000,
    "classes": 1_000_000,
    "expansion": 100,
    "width": 10_000,
    "blocks": 100,
    "stride": 2,
    "kernel": 15,
}


@dataclass(frozen=True)
class Stage:
    """Blocks of one width, of which the first has the stride."""

    expansion: int
    width: int
    blocks: int
    stride: int
    kernel: int


@dataclass(frozen=True)
class LiteConfig:
    """What a config.json says of an EfficientNet-Lite, under these names."""

    image_size: int
    stem_width: int
    stages: tuple[Stage, ...]
    head_width: int
    classes: int  # of the classifier, which is kept and never run

    @property
    def stride(self) -> int:
        """Pixels between two places of the last features; the stem's stride is 2."""
        return 2 * math.prod(stage.stride for stage in self.stages)

    @classmethod
    def from_dict(cls, data: dict) -> "LiteConfig":
        """UserError for another model, for an unknown or a missing key, or a size that no encoder
        has."""
        if data.get("model_type") not in EFFICIENTNET_LITE.model_types:
            raise UserError(f"expected an EfficientNet-Lite, got {shown(data.get('model_type'))}")
        values = {name: value for name, value in data.items() if name != "model_type"}
        stages = values.get("stages")
        if not isinstance(stages, list) or not 1 <= len(stages) <= 100:
            raise UserError(f"stages: expected a list of 1 to 100 of them, got {shown(stages)}")
        checked = []
        for number, stage in enumerate(stages, start=1):
            with within(f"stage {number}"):
                if not isinstance(stage, dict):
                    raise UserError(f"expected an object, got {shown(stage)}")
                _check_sizes(stage, Stage)
                checked.append(Stage(**stage))
                if stage["kernel"] % 2 == 0 or stage["kernel"] < stage["stride"]:
                    raise UserError(
                        f"kernel: expected an odd number, the stride at least, "
                        f"got {stage['kernel']}"
                    )
        del values["stages"]
        _check_sizes(values, cls, "stages")
        config = cls(stages=tuple(checked), **values)
        if config.image_size % config.stride:
            raise UserError(
                f"image_size: expected a multiple of {config.stride}, the stride of the stages "
                f"together, got {config.image_size}"
            )
        return config

    def to_dict(self) -> dict:
        return {"model_type": EFFICIENTNET_LITE.model_types[0]} | asdict(self)


def _check_sizes(sizes: dict, of: type, *apart: str) -> None:
    """Raise UserError unless `sizes` has the fields of a dataclass but for `apart`, in range."""
    names = set(of.__annotations__) - {*apart}
    unknown, missing = sorted(sizes.keys() - names), sorted(names - sizes.keys())
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r}")
    if missing:
        raise UserError(f"the key {missing[0]!r} is missing")
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= LARGEST[name]:
            raise UserError(
                f"{name}: expected a whole number, 1 to {LARGEST[name]}, got {shown(size)}"
            )


class Convolution(nn.Conv2d):
    """With the batch norm that follows it as its bias and in its weights.

    Zeros around the input as TensorFlow's `same` has them, of an input that the stride divides:
    those that cannot be shared out evenly lie below and to the right.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups=1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        before = (kernel - stride) // 2
        self.margins = (before, kernel - stride - before) * 2

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.margins))


class Block(nn.Module):
    """Expansion, a convolution of each channel alone, and projection; without squeeze and excite,
    which the Lite variants leave out."""

    def __init__(self, inputs: int, stage: Stage, stride: int):
        super().__init__()
        inner = inputs * stage.expansion
        self.expand = Convolution(inputs, inner) if stage.expansion > 1 else None
        self.depthwise = Convolution(inner, inner, stage.kernel, stride, groups=inner)
        self.project = Convolution(inner, stage.width)
        self.is_residual = stride == 1 and inputs == stage.width

    def forward(self, hidden: Tensor) -> Tensor:
        inner = hidden if self.expand is None else F.relu6(self.expand(hidden))
        projected = self.project(F.relu6(self.depthwise(inner)))
        return hidden + projected if self.is_residual else projected


class EfficientNetLite(VisionEncoder):
    """The last features before the classifier's mean: `head_width` channels, a place for each 32
    pixels, none below 0.

    EfficientNet (arXiv 1905.11946) without squeeze and excite and with ReLU6. The classifier is
    kept for saving and for `classify`; features have nothing of it.
    """

    kind = EFFICIENTNET_LITE

    def __init__(
        self,
        config: LiteConfig,
        grid: int,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Image.Resampling = BICUBIC,
    ):
        side = config.image_size // config.stride
        super().__init__(config.image_size, side, grid, mean, std, resample)
        self.config = config
        self.stem = Convolution(3, config.stem_width, 3, 2)
        strides = [s.stride if n == 0 else 1 for s in config.stages for n in range(s.blocks)]
        stages = [stage for stage in config.stages for _ in range(stage.blocks)]
        widths = [config.stem_width, *(stage.width for stage in stages)]
        self.blocks = nn.Sequential(*map(Block, widths, stages, strides))
        self.head = Convolution(widths[-1], config.head_width)
        self.classifier = nn.Linear(config.head_width, config.classes)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_config(
        cls, data: dict, grid: int, image_size: int | None = None, **preprocessing: Any
    ) -> "EfficientNetLite":
        """The size is that of config.json, which `outline` compares with `image_size`."""
        return cls(LiteConfig.from_dict(data), grid, **preprocessing)

    @property
    def width(self) -> int:
        return self.config.head_width

    def encode(self, pixel_values: Tensor) -> Tensor:
        weight = self.stem.weight
        hidden = F.relu6(self.stem(pixel_values.to(weight.device, weight.dtype)))
        features = F.relu6(self.head(self.blocks(hidden)))  # [B, C, side, side]
        return features.flatten(2).transpose(1, 2)

    def classify(self, pixel_values: Tensor) -> Tensor:
        """Logits [B, classes] of pixel values [B, 3, S, S], by which a port can be checked."""
        return self.classifier(self.encode(pixel_values).mean(1))

    def facts(self) -> list[Any]:
        sizes = {name: size for name, size in self.config.to_dict().items() if name != "classes"}
        return [sizes, self.mean, self.std, self.grid, int(self.square.resample)]

    def deciding_weights(self) -> dict[str, Tensor]:
        tensors = self.state_dict()
        return {name: t for name, t in tensors.items() if not name.startswith("classifier.")}

    def operations(self) -> int:
        outputs = self._outputs()
        return sum(
            2 * side**2 * convolution.weight.numel() for convolution, side in outputs.items()
        )

    def working_bytes(self, products: int) -> int:
        """Of the largest two results that follow each other, twice: with what a block adds to, and
        with zeros around."""
        sizes = [side**2 * conv.out_channels for conv, side in self._outputs().items()]
        return 2 * max(map(sum, pairwise(sizes))) * products

    def _outputs(self) -> dict[Convolution, int]:
        """The convolutions in their order, and the side of the square that each gives."""
        side, sides = self.config.image_size, {}
        for module in self.modules():
            if isinstance(module, Convolution):
                side //= module.stride[0]
                sides[module] = side
        return sides

    def load(self, folder: Path) -> None:
        load_module(self, read_tensors(folder), folder)

    def save(self, folder: Path) -> None:
        write_tensors(folder, self.state_dict())
        write_json(folder / "config.json", self.config.to_dict())
