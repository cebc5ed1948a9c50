"""The kinds of encoders there are, by the model_type of their config.json."""

from pathlib import Path

from metamorph.errors import within
from metamorph.model.efficientnet_lite import EfficientNetLite
from metamorph.model.encoder_files import EFFICIENTNET_LITE, check_kind
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json


def open_vision(folder: str | Path, grid: int) -> VisionEncoder:
    """The encoder of a folder: a SiglipVisionModel, the vision half of a SiglipModel, or an
    EfficientNet-Lite as `metamorph import` makes it.

    Raises UserError if the folder holds another model or its files do not fit together.
    """
    path = Path(folder) / "config.json"
    data = read_json(path)
    with within(path):
        kind = _kind(data)
    return kind.from_pretrained(folder, grid)


def outline_vision(data: dict, grid: int) -> VisionEncoder:
    """An encoder of the sizes in a config.json, with random weights. Raises UserError."""
    return _kind(data).from_config(data, grid)


def _kind(data: dict) -> type[VisionEncoder]:
    check_kind(data)
    if data["model_type"] == EFFICIENTNET_LITE:
        return EfficientNetLite
    from metamorph.model.siglip import SiglipEncoder  # of transformers, which imports slowly

    return SiglipEncoder
