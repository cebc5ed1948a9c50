"""Opening image files that may be missing, broken, huge or outside their folder."""

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from metamorph.data.conversation import SampleError

FORMATS = ("JPEG", "PNG", "WEBP")
LONGEST_SHOWN = 200


def resolve_inside(root: Path, name: str) -> Path:
    """``root / name``, which must stay inside ``root`` once links are followed."""
    try:
        root = root.resolve()
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a circle
        message = f"image path {shorten(name)!r} cannot be followed: {reason(error)}"
        raise SampleError("missing image", message) from error
    if not path.is_relative_to(root):
        message = f"image path {shorten(name)!r} leaves its root {root}"
        raise SampleError("image outside its root", message)
    return path


def shorten(text: str) -> str:
    """Text for a message: names in bad data may be of any length."""
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def reason(error: Exception) -> str:
    """What went wrong, without the path that an ``OSError`` repeats."""
    return getattr(error, "strerror", None) or str(error)


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Decodes one file to RGB. The size is checked before any pixel is decoded.

    Raises ``SampleError`` for a file that is missing, larger than ``max_pixels`` or not a whole
    JPEG, PNG or WebP picture.
    """
    try:
        exists = path.is_file()
    except (OSError, ValueError) as error:
        message = f"image {shorten(str(path))} cannot be looked up: {reason(error)}"
        raise SampleError("missing image", message) from error
    if not exists:
        raise SampleError("missing image", f"image {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise SampleError(
                        "image too large",
                        f"image {path} has {width} x {height} pixels, the cap is {max_pixels}",
                    )
                return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise SampleError("image too large", f"image {path}: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise SampleError("corrupt image", f"image {path} cannot be read: {error}") from error
