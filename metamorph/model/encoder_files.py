"""The files of an encoder's folder that are read without the model that they are of."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metamorph.errors import UserError, shown
from metamorph.model.weights import read_json, read_tensors

TOWER_PREFIX = "vision_model."
DEFAULT_MEAN = DEFAULT_STD = (0.5, 0.5, 0.5)  # those of every released SigLIP
STEPS = {  # of a preprocessor, as `VisionEncoder.preprocess` does them
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def read_tower(folder: Path) -> dict[str, Tensor]:
    """The tensors of a SiglipVisionModel folder, or of the vision half of a SiglipModel folder, by
    their names in the tower. Raises `UserError`."""
    tensors = read_tensors(folder)
    if any(name.startswith(TOWER_PREFIX) for name in tensors):
        tensors = {
            name.removeprefix(TOWER_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(TOWER_PREFIX)
        }
    # Old exporters stored the position numbers, which no trained weight depends on.
    tensors.pop("embeddings.position_ids", None)
    return tensors


def check_encoder(folder: Path) -> None:
    """Raises `UserError` for files that are missing or damaged. Whether they make an encoder is for
    `VisionEncoder.from_pretrained` to say."""
    size = read_json(folder / "config.json").get("image_size")
    if type(size) is not int:
        raise UserError(f"{folder / 'config.json'}: image_size: expected pixels, got {shown(size)}")
    read_preprocessing(folder / "preprocessor_config.json", size)
    read_tower(folder)


def read_preprocessing(path: Path, image_size: int) -> dict[str, Any]:
    """`mean`, `std` and `resample` of a preprocessor_config.json. UserError for other steps."""
    if not path.exists():
        return {}
    data = {name: value for name, value in read_json(path).items() if value is not None}
    square = {"height": image_size, "width": image_size}
    if data.get("size", square) not in (square, image_size):  # older files give the side alone
        raise UserError(
            f"{path}: size is {shown(data['size'])}, but the encoder takes {image_size} pixels"
        )
    for name, done in STEPS.items():
        if data.get(name, done) != done:
            raise UserError(f"{path}: expected {name} {done}, got {shown(data[name])}")
    how = {}
    for name in ("mean", "std"):
        values = data.get(f"image_{name}", list(DEFAULT_MEAN))
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_real, values)):
            raise UserError(f"{path}: image_{name}: expected three numbers, got {shown(values)}")
        how[name] = values
    resample = data.get("resample", Image.Resampling.BICUBIC)
    known = {int(way): way.name.lower() for way in Image.Resampling}
    if type(resample) not in (int, Image.Resampling) or resample not in known:
        names = ", ".join(f"{number} ({name})" for number, name in sorted(known.items()))
        raise UserError(f"{path}: resample: expected one of {names}, got {shown(resample)}")
    return how | {"resample": Image.Resampling(resample)}


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6
