"""A folder, or a config.json, to the kind of encoder that it is of."""

from pathlib import Path

from metamorph.errors import within
from metamorph.model.efficientnet_lite import EfficientNetLite
from metamorph.model.encoder_kinds import (
    CLIP,
    DINOV2,
    DINOV2_REGISTERS,
    EFFICIENTNET_LITE,
    SIGLIP,
    SIGLIP2_NAFLEX,
    kind_of,
)
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json


def open_vision(folder: str | Path, grid: int) -> VisionEncoder:
    """The encoder of a folder: one of those that `encoder_kinds.py` lists, or the vision half of a
    model with text.

    Raises UserError if the folder holds another model or its files do not fit together.
    """
    return _encoder_of(folder).from_pretrained(folder, grid)


def outline_vision(folder: str | Path, grid: int) -> VisionEncoder:
    """The encoder of a folder, with random weights. Raises UserError."""
    return _encoder_of(folder).outline(folder, grid)


def vision_of_sizes(config: dict, grid: int) -> VisionEncoder:
    """An encoder of the sizes in a config.json, with random weights. Raises UserError."""
    return _encoder(config).from_config(config, grid)


def _encoder_of(folder: str | Path) -> type[VisionEncoder]:
    path = Path(folder) / "config.json"
    config = read_json(path)
    with within(path):
        return _encoder(config)


def _encoder(config: dict) -> type[VisionEncoder]:
    """Each is imported when it is asked for: transformers imports slowly."""
    kind = kind_of(config)
    if kind is EFFICIENTNET_LITE:
        return EfficientNetLite
    if kind is SIGLIP:
        from metamorph.model.siglip import SiglipEncoder

        return SiglipEncoder
    if kind is SIGLIP2_NAFLEX:
        from metamorph.model.siglip2 import NaflexEncoder

        return NaflexEncoder
    if kind is CLIP:
        from metamorph.model.clip import ClipEncoder

        return ClipEncoder
    from metamorph.model.dino import Dinov2Encoder, Dinov2RegistersEncoder, Dinov3Encoder

    if kind is DINOV2:
        return Dinov2Encoder
    return Dinov2RegistersEncoder if kind is DINOV2_REGISTERS else Dinov3Encoder
