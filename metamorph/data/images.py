"""Opening image files that may be missing, broken, huge or outside their folder."""

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from metamorph.data.conversation import SampleError

FORMATS = ("JPEG", "PNG", "WEBP")


def resolve_inside(root: Path, name: str) -> Path:
    """``root / name``, which must stay inside ``root`` once links are followed."""
    root = root.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise SampleError("image outside its root", f"image path {name!r} leaves its root {root}")
    return path


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Decodes one file to RGB. The size is checked before any pixel is decoded.

    Raises ``SampleError`` for a file that is missing, larger than ``max_pixels`` or not a whole
    JPEG, PNG or WebP picture.
    """
    if not path.is_file():
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
