"""A random network of transformers for each kind of vision transformer, in a folder as released."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from metamorph.model.clip import ClipEncoder
from metamorph.model.dino import Dinov2Encoder, Dinov2RegistersEncoder, Dinov3Encoder
from metamorph.model.encoder_kinds import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderKind,
)
from metamorph.model.siglip import SiglipEncoder
from metamorph.model.siglip2 import NaflexEncoder
from metamorph.model.vit import ViTEncoder, is_served

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8}
MLP = {"intermediate_size": 32}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP_COLOURS = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


@dataclass(frozen=True)
class Family:
    """A kind of encoder with the files that its release has, for squares of `side` patches.

    `last` gives what transformers says of pixel values: the tokens of patches, [B, patches, C].
    """

    encoder: type[ViTEncoder]
    network: Callable[[], Any]
    preprocessor: dict[str, Any]
    side: int
    last: Callable[[Any, Tensor], Tensor]

    def model(self) -> Any:
        torch.manual_seed(0)
        model = self.network().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
        return model

    def write(self, folder: Path) -> Path:
        self.model().save_pretrained(folder)
        written = {"do_resize": True, "do_rescale": True, "do_normalize": True}
        written |= {"rescale_factor": 1 / 255} | self.preprocessor
        (folder / "preprocessor_config.json").write_text(json.dumps(written))
        return folder

    @property
    def image_size(self) -> int:
        return self.side * SIZES["patch_size"]

    def tokens(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad():
            return self.last(self.model(), pixel_values)


def before_the_last_norm(model: Any, pixel_values: Tensor) -> Tensor:
    return model(pixel_values, output_hidden_states=True).hidden_states[-1]


def without(count: int) -> Callable[[Any, Tensor], Tensor]:
    """The last_hidden_state but for its first `count` tokens."""
    return lambda model, pixel_values: model(pixel_values).last_hidden_state[:, count:]


def patches_of(pixel_values: Tensor, patch: int) -> Tensor:
    """As NaFlex takes pictures: [B, patches, patch * patch * 3]."""
    rows = pixel_values.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, 3, y, x, p, p]
    return rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def naflex_before_the_last_norm(model: Any, pixel_values: Tensor) -> Tensor:
    side = pixel_values.shape[2] // 8
    return model(
        patches_of(pixel_values, 8),
        pixel_attention_mask=torch.ones(len(pixel_values), side * side, dtype=torch.int64),
        spatial_shapes=torch.full((len(pixel_values), 2), side),
        output_hidden_states=True,
    ).hidden_states[-1]


DINOV3 = {**SIZES, **MLP, "image_size": 56, "num_register_tokens": 4}

FAMILIES = {
    "SigLIP 2": Family(
        SiglipEncoder,
        lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, **MLP, image_size=56)),
        HALF | {"size": square(56), "resample": 2, "do_convert_rgb": None},
        7,
        before_the_last_norm,
    ),
    "SigLIP 2 NaFlex": Family(
        NaflexEncoder,
        lambda: Siglip2VisionModel(Siglip2VisionConfig(**SIZES, **MLP, num_patches=49)),
        HALF | {"max_num_patches": 25, "patch_size": 8, "resample": 2},
        5,
        naflex_before_the_last_norm,
    ),
    "CLIP": Family(
        ClipEncoder,
        lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **MLP, image_size=56)),
        CLIP_COLOURS | {"crop_size": 56, "do_center_crop": True, "size": 56, "resample": 3},
        7,
        without(1),
    ),
    "DINOv2": Family(
        Dinov2Encoder,
        lambda: Dinov2Model(Dinov2Config(**SIZES, image_size=56)),
        IMAGENET
        | {"size": {"shortest_edge": 46}, "do_center_crop": True, "crop_size": square(40)}
        | {"resample": 3},
        5,
        without(1),
    ),
    "DINOv2 giant": Family(
        Dinov2Encoder,
        lambda: Dinov2Model(Dinov2Config(**SIZES, image_size=56, use_swiglu_ffn=True)),
        IMAGENET | {"size": square(56), "do_center_crop": False, "crop_size": square(40)},
        7,
        without(1),
    ),
    "DINOv2 with registers": Family(
        Dinov2RegistersEncoder,
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, image_size=56)),
        IMAGENET | {"do_center_crop": True, "crop_size": square(40), "resample": 3},
        5,
        without(5),
    ),
    "DINOv3": Family(
        Dinov3Encoder,
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**DINOV3)),
        IMAGENET | {"size": square(48), "resample": 2, "do_center_crop": None},
        6,
        without(5),
    ),
    "DINOv3 7B": Family(
        Dinov3Encoder,
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**DINOV3, use_gated_mlp=True, hidden_act="silu")),
        IMAGENET | {"size": square(56), "resample": 2},
        7,
        without(5),
    ),
}


def where_served(kind: EncoderKind) -> pytest.MarkDecorator:
    """Skips a test where transformers is too old for this kind of encoder."""
    reason = f"{kind.name} needs transformers {kind.since[0]}.{kind.since[1]}"
    return pytest.mark.skipif(not is_served(kind), reason=reason)


def served(name: str, *values: Any) -> Any:
    """A parameter of a test: the name of one of `FAMILIES`, skipped where that is not served."""
    return pytest.param(name, *values, marks=where_served(FAMILIES[name].encoder.kind))
