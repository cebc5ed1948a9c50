"""The files of an encoder's folder that are read without the model that they are of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metamorph.errors import UserError, shown, within
from metamorph.model.weights import read_json, read_tensors, write_json
from metamorph.pixels import Square

SIGLIP = ("siglip", "siglip_vision_model")  # model_type of a config.json
EFFICIENTNET_LITE = "efficientnet_lite"
TOWER_PREFIX = "vision_model."
DEFAULT_MEAN = DEFAULT_STD = (0.5, 0.5, 0.5)  # those of every released SigLIP
STEPS = {  # of a preprocessor, as `VisionEncoder.preprocess` does them
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def check_kind(config: dict) -> None:
    """Raises `UserError` for the config.json of what is no encoder that is served."""
    served = (*SIGLIP, EFFICIENTNET_LITE)
    kind = config.get("model_type")
    if kind not in served:
        raise UserError(
            f"expected an encoder, of model_type {', '.join(served[:-1])} or {served[-1]}, "
            f"got {shown(kind)}"
        )


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
    """Raises `UserError` for files that are missing or damaged, or of another model. Whether they
    make an encoder is for `open_vision` to say."""
    config = read_json(folder / "config.json")
    with within(folder / "config.json"):
        check_kind(config)
    size = config.get("image_size")
    if type(size) is not int:
        raise UserError(f"{folder / 'config.json'}: image_size: expected pixels, got {shown(size)}")
    read_preprocessing(folder / "preprocessor_config.json", size)
    read_tensors(folder)


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


def write_preprocessing(path: Path, square: Square, mean: list[float], std: list[float]) -> None:
    """What `read_preprocessing` reads, and transformers' processor of SigLIP too."""
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "size": {"height": square.side, "width": square.side},
        "resample": int(square.resample),
        "image_mean": mean,
        "image_std": std,
    }
    write_json(path, STEPS | settings)


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6


# Settings of a SigLIP that its features depend on and its weights do not say.
SIGLIP_SIZES = ("image_size", "patch_size")
SIGLIP_ARITHMETIC = ("num_attention_heads", "hidden_act", "layer_norm_eps")


def siglip_facts(config: Mapping[str, Any], preprocessing: Mapping[str, Any], grid: int) -> list:
    """What decides a SigLIP's features beside its weights: of the settings in its config.json, and
    of what `read_preprocessing` gives."""
    return [
        *(config[name] for name in SIGLIP_SIZES),
        *(preprocessing.get("mean", DEFAULT_MEAN), preprocessing.get("std", DEFAULT_STD), grid),
        *(config[name] for name in SIGLIP_ARITHMETIC),
        int(preprocessing.get("resample", Image.Resampling.BICUBIC)),
    ]


def siglip_weights(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a SigLIP's tower that decide its features."""
    parts = ("embeddings.", "encoder.")
    return {name: tensor for name, tensor in tower.items() if name.startswith(parts)}
