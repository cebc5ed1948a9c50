"""preprocessor_config.json: how pictures become the squares that an encoder takes."""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from metamorph.errors import UserError, shown
from metamorph.model.encoder_kinds import SIGLIP2_NAFLEX, EncoderKind
from metamorph.model.weights import read_json, write_json
from metamorph.pixels import Square

FILE = "preprocessor_config.json"
STEPS = {  # of a preprocessor, as `VisionEncoder.preprocess` does them
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
LARGEST_SIDE = 10_000  # pixels


def read_preprocessing(path: Path, kind: EncoderKind) -> dict[str, Any]:
    """`mean`, `std` and `resample`, and `image_size`, the side in pixels of the square, which is
    None where the file is absent or does not say it. UserError for other steps."""
    data = {}
    if path.exists():
        data = {name: value for name, value in read_json(path).items() if value is not None}
    for name, done in STEPS.items():
        if data.get(name, done) != done:
            raise UserError(f"{path}: expected {name} {done}, got {shown(data[name])}")
    how: dict[str, Any] = {"image_size": _side(data, kind, path)}
    for name, default in (("mean", kind.mean), ("std", kind.std)):
        values = data.get(f"image_{name}", list(default))
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_real, values)):
            raise UserError(f"{path}: image_{name}: expected three numbers, got {shown(values)}")
        how[name] = values
    resample = data.get("resample", kind.resample)
    known = {int(way): way.name.lower() for way in Image.Resampling}
    if type(resample) not in (int, Image.Resampling) or resample not in known:
        names = ", ".join(f"{number} ({name})" for number, name in sorted(known.items()))
        raise UserError(f"{path}: resample: expected one of {names}, got {shown(resample)}")
    return how | {"resample": Image.Resampling(resample)}


def _side(data: dict[str, Any], kind: EncoderKind, path: Path) -> int | None:
    """Of the square that the processor of transformers makes of a square picture."""
    if kind is SIGLIP2_NAFLEX:
        patches, patch = data.get("max_num_patches"), data.get("patch_size", 16)
        if patches is None:
            return None
        for name, value in (("max_num_patches", patches), ("patch_size", patch)):
            if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
                raise UserError(
                    f"{path}: {name}: expected a whole number, 1 to {LARGEST_SIDE}, "
                    f"got {shown(value)}"
                )
        return math.isqrt(patches) * patch
    # Where the middle is cut out, the whole picture is squashed to what would be left of it.
    name = "crop_size" if data.get("do_center_crop", "crop_size" in data) else "size"
    size = data.get(name)
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        side = size["height"] if size["height"] == size["width"] else None
    else:  # older files give the side alone
        side = size
    if size is not None and (type(side) is not int or not 1 <= side <= LARGEST_SIDE):
        raise UserError(
            f"{path}: {name} is {shown(size)}, expected one number of pixels as height and width"
        )
    return side


def check_size(given: int | None, taken: int, path: Path) -> None:
    """Raises `UserError` unless the file at `path` gives no size, or the one that is taken."""
    if given not in (None, taken):
        raise UserError(f"{path}: size is {given} pixels, but the encoder takes {taken}")


def write_preprocessing(
    path: Path, square: Square, mean: list[float], std: list[float], patch_size: int | None = None
) -> None:
    """What `read_preprocessing` reads, and transformers' processor of SigLIP too; with a
    `patch_size`, that of SigLIP 2 NaFlex, which does the same to square pictures alone."""
    side = square.side
    if patch_size is None:
        kind: dict[str, Any] = {"size": {"height": side, "width": side}}
    else:
        kind = {"patch_size": patch_size, "max_num_patches": (side // patch_size) ** 2}
    processor = "SiglipImageProcessor" if patch_size is None else "Siglip2ImageProcessor"
    settings = {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "resample": int(square.resample),
        "image_mean": mean,
        "image_std": std,
    }
    write_json(path, STEPS | kind | settings)


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6
