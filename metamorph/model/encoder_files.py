"""The files of an encoder's folder that are read without the model that they are of."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metamorph.errors import UserError, shown, within
from metamorph.model.encoder_kinds import SIGLIP, SIGLIP2_NAFLEX, EncoderKind, kind_of
from metamorph.model.preprocessing import FILE, check_size, read_preprocessing
from metamorph.model.weights import read_json, read_tensors

# How files name what has another name in the network: of a DINOv2, then of a DINOv3.
RENAMED = {
    r"\.attention\.attention\.query\.": ".attention.q_proj.",
    r"\.attention\.attention\.key\.": ".attention.k_proj.",
    r"\.attention\.attention\.value\.": ".attention.v_proj.",
    r"\.attention\.output\.dense\.": ".attention.o_proj.",
    r"\.mlp\.weights_out\.": ".mlp.down_proj.",
    r"^layer\.": "model.layer.",
}


def read_tower(folder: Path, kind: EncoderKind) -> dict[str, Tensor]:
    """The tensors of the folder of an encoder of transformers, or of the vision half of a model
    with text, by their names in the network. Raises `UserError`."""
    tensors = read_tensors(folder)
    if kind.file_prefix and any(name.startswith(kind.file_prefix) for name in tensors):
        tensors = {
            name.removeprefix(kind.file_prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(kind.file_prefix)
        }
    # Old exporters stored the position numbers, which no trained weight depends on.
    tensors.pop("embeddings.position_ids", None)
    named = {}
    for name, tensor in tensors.items():
        for written, known in RENAMED.items():
            name = re.sub(written, known, name)
        if ".mlp.weights_in." in name:  # two projections in one, of the largest DINOv2
            for part, half in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                named[name.replace("weights_in", part)] = half.contiguous()
        else:
            named[name] = tensor
    return named


def check_encoder(folder: Path) -> None:
    """Raises `UserError` for files that are missing or damaged, or of another model. Whether they
    make an encoder is for `open_vision` to say."""
    saved_preprocessing(folder)
    read_tensors(folder)


def saved_preprocessing(folder: Path) -> dict[str, Any]:
    """What `read_preprocessing` gives, of the encoder in a model folder, whose config.json says the
    `image_size` where preprocessor_config.json does not. Raises `UserError`."""
    config = read_json(folder / "config.json")
    with within(folder / "config.json"):
        kind = kind_of(config)
    how = read_preprocessing(folder / FILE, kind)
    if kind.is_any_size and how["image_size"] is not None:
        return how
    with within(folder / "config.json"):
        size = _size_of(config, kind)
    check_size(how["image_size"], size, folder / FILE)
    return how | {"image_size": size}


def _size_of(config: dict[str, Any], kind: EncoderKind) -> int:
    """The side in pixels of the square that a config.json is for."""
    first, second = kind.sizes
    for name in (first, second) if kind is SIGLIP2_NAFLEX else (first,):
        if type(config.get(name)) is not int or config[name] < 1:
            raise UserError(f"{name}: expected a whole number, got {shown(config.get(name))}")
    return math.isqrt(config[first]) * config[second] if kind is SIGLIP2_NAFLEX else config[first]


def tower_facts(
    kind: EncoderKind, config: Mapping[str, Any], how: Mapping[str, Any], grid: int
) -> list:
    """What decides the features of an encoder of transformers beside its weights: of the settings
    in its config.json, and of what `read_preprocessing` gives, with an `image_size`."""
    facts = [
        *(how["image_size"], config["patch_size"], how["mean"], how["std"], grid),
        *(config[name] for name in kind.settings),
        int(how["resample"]),
    ]
    return facts if kind is SIGLIP else [*facts, kind.name]  # caches of SigLIP are older than kinds


def deciding(kind: EncoderKind, tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of an encoder's weights that decide its features."""
    return {name: t for name, t in tower.items() if not name.startswith(kind.never_run)}
