"""Which encoder features are of: a hash of all that decides them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamorph.errors import within
from metamorph.model.efficientnet_lite import EfficientNetLite
from metamorph.model.encoder_files import deciding, read_tower, saved_preprocessing, tower_facts
from metamorph.model.encoder_kinds import EFFICIENTNET_LITE, kind_of
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json


def identity(vision: VisionEncoder) -> str:
    """A hash of all that decides an encoder's features: weights, shapes, preprocessing, grid.

    Weights count as bfloat16, in which a model folder may hold its copy of the encoder.
    """
    return _hash(vision.facts(), vision.deciding_weights())


def stored_identity(folder: Path, grid: int) -> str | None:
    """`identity` of the encoder in a folder, without the time that opening one of transformers
    takes.

    None where its config.json leaves a setting to transformers. Raises `UserError` for files that
    cannot be read.
    """
    config = read_json(folder / "config.json")
    with within(folder / "config.json"):
        kind = kind_of(config)
    if kind is EFFICIENTNET_LITE:
        return identity(EfficientNetLite.from_pretrained(folder, grid))
    if any(name not in config for name in (*kind.sizes, *kind.settings)):
        return None
    how = saved_preprocessing(folder)
    facts = tower_facts(kind, config, how, grid)
    return _hash(facts, deciding(kind, read_tower(folder, kind)))


def _hash(facts: list[Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.is_floating_point():
            rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.int16).numpy().data)
    return digest.hexdigest()
