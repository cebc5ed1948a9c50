"""Pictures as a viewer shows them: upright, on white ground, eight bits a colour.

What a Pillow image holds may lie on its side (EXIF says how it is turned), leave its ground open,
or count to more than 255. Here it becomes what an encoder takes: RGB.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

Fit = Literal["squash", "crop"]
GROUND = (255, 255, 255)  # what shows through where a picture is transparent
TURNS = {  # what brings a picture of this EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO = 0  # how a TIFF says it
OPAQUE = ("RGBX", "CMYK", "YCbCr", "LAB", "HSV")  # whatever was left in an image's `info`
# The largest value of a picture of 32 bits: the first of these that none of its values exceeds.
FULL_SCALES = {"I": (255, 65535), "F": (1, 255, 65535)}


def as_shown(image: Image.Image) -> Image.Image:
    """Any Pillow image in RGB, as a viewer shows it; one that is so already is returned as it is.

    It is turned as its EXIF data say. Transparent parts show white ground. 16 bits keep their upper
    eight. 32-bit whole numbers are taken as 8 or 16 bits where all fit, floats as 0 to 1, 8 or 16
    bits; what is larger is scaled to its own largest value. Below 0 and NaN are black.
    """
    image.load()
    turn = TURNS.get(_orientation(image))
    if image.mode == "RGB" and turn is None and not image.has_transparency_data:
        return image
    shown = _rgb(image)
    if turn is not None:
        shown = shown.transpose(turn)
    shown.info = {}  # else it would be turned again
    return shown


def _orientation(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, that they are damaged
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged EXIF data make of Pillow: they must not cost the picture
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image, image.info.get("transparency")).convert("RGB")
    if image.mode in FULL_SCALES:
        return _many_bits(image).convert("RGB")
    if image.mode == "La":  # Pillow converts it to nothing but LA
        image = image.convert("LA")
    if not image.has_transparency_data or image.mode in OPAQUE:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, GROUND)
    ground.paste(rgba, mask=rgba)
    return ground


def _sixteen_bits(image: Image.Image, key: int | None) -> Image.Image:
    """Grey of the upper eight bits; the level `key` is transparent."""
    values = np.asarray(image.convert("I"))  # [height, width]
    if isinstance(image, TiffImageFile):  # of which Pillow gives the values as they are stored
        bits = image.tag_v2[BITSPERSAMPLE][0]  # 12 or 16
        values = values << (16 - bits)
        if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            values = 65535 - values
    levels = (values >> 8).astype(np.uint8)
    if key is not None:
        levels[values == key] = GROUND[0]
    return Image.fromarray(levels)


def _many_bits(image: Image.Image) -> Image.Image:
    """Grey of 32-bit whole numbers or floats."""
    values = np.nan_to_num(np.asarray(image, np.float32), nan=0, posinf=np.inf, neginf=0)
    largest = float(np.max(values, initial=0, where=np.isfinite(values)))
    full = next((scale for scale in FULL_SCALES[image.mode] if largest <= scale), largest)
    # Whole numbers are cut as those of 16 bits are, floats rounded.
    values *= 256 / (full + 1) if image.mode == "I" else 255 / full
    if image.mode == "F":
        np.rint(values, out=values)
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))


@dataclass(frozen=True)
class Square:
    """How pictures become `side` x `side` pixels: squashed whole, as encoders take them, or cropped
    to the middle of their longer side first."""

    side: int
    resample: Image.Resampling = Image.Resampling.BICUBIC
    fit: Fit = "squash"

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB, `side` pixels a side; one that is so already is returned as it is."""
        shown = as_shown(image)
        if self.fit == "crop":
            shown = middle_square(shown)
        size = (self.side, self.side)
        return shown if shown.size == size else shown.resize(size, self.resample)


def middle_square(image: Image.Image) -> Image.Image:
    """The square in the middle, as wide as the shorter side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return (
        image if image.width == image.height else image.crop((left, top, left + side, top + side))
    )
