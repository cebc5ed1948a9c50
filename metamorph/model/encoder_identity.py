"""Which encoder features are of: a hash of all that decides them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from metamorph.model.encoder_files import (
    DEFAULT_MEAN,
    DEFAULT_STD,
    read_preprocessing,
    read_tower,
)
from metamorph.model.weights import read_json

if TYPE_CHECKING:
    from metamorph.model.vision import VisionEncoder

# Settings of an encoder that its features depend on and its weights do not say.
SIZES = ("image_size", "patch_size")
ARITHMETIC = ("num_attention_heads", "hidden_act", "layer_norm_eps")


def identity(vision: "VisionEncoder") -> str:
    """A hash of all that decides an encoder's features: weights, shapes, preprocessing, grid.

    Weights count as bfloat16, in which a model folder may hold its copy of the encoder.
    """
    config = vision.config
    return _hash(
        [
            *(getattr(config, name) for name in SIZES),
            *(vision.mean, vision.std, vision.grid),
            *(getattr(config, name) for name in ARITHMETIC),
            int(vision.square.resample),
        ],
        vision.tower.state_dict().items(),
    )


def stored_identity(folder: Path, grid: int) -> str | None:
    """`identity` of the encoder in a folder, without the time that opening it takes.

    None where its config.json leaves a setting to transformers. Raises `UserError` for files that
    cannot be read.
    """
    config = read_json(folder / "config.json")
    if any(name not in config for name in (*SIZES, *ARITHMETIC)):
        return None
    how = read_preprocessing(folder / "preprocessor_config.json", config["image_size"])
    return _hash(
        [
            *(config[name] for name in SIZES),
            *(how.get("mean", DEFAULT_MEAN), how.get("std", DEFAULT_STD), grid),
            *(config[name] for name in ARITHMETIC),
            int(how.get("resample", Image.Resampling.BICUBIC)),
        ],
        read_tower(folder).items(),
    )


def _hash(facts: list[Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(tensors):
        if name.startswith(("embeddings.", "encoder.")):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            if tensor.is_floating_point():
                rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.int16).numpy().data)
    return digest.hexdigest()
