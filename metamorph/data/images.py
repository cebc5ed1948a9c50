"""Images that are not open yet, and opening those that may be missing, broken, huge or outside
their folder.

Whatever holds images hands out a `Picture`: it opens only when its turn comes, and its key tells
equal content without decoding it.
"""

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, UnidentifiedImageError

from metamorph.errors import SampleError

FORMATS = ("JPEG", "PNG", "WEBP")
LONGEST_SHOWN = 200
LARGEST_FILE = 2**30  # bytes of one image or video; more is never read into memory
OUTLINE = 5  # pixels, of a marked box

Box = tuple[float, float, float, float]  # x and y of the top left, then of the bottom right


class Picture(Protocol):
    """An image that is not open yet."""

    def open(self) -> Image.Image:
        """The image in RGB. Raises `SampleError`."""

    def key(self) -> bytes:
        """32 bytes that are the same for the same content only. Raises `SampleError`."""


@dataclass(frozen=True)
class StoredImage:
    """One JPEG, PNG or WebP file, wherever its bytes lie."""

    name: str  # for messages
    read: Callable[[], bytes]  # raises SampleError
    max_pixels: int

    def open(self) -> Image.Image:
        return decode_image(self.read(), self.name, self.max_pixels)

    def key(self) -> bytes:
        return hashlib.sha256(self.read()).digest()


@dataclass(frozen=True)
class Crop:
    """A part of another picture."""

    picture: Picture
    box: Box  # in pixels

    def open(self) -> Image.Image:
        image = self.picture.open()
        left, top, right, bottom = (round(side) for side in self.box)
        inside = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            size = f"{image.width} x {image.height}"
            raise SampleError("empty box", f"box {list(self.box)} holds nothing of {size} pixels")
        return image.crop(inside)

    def key(self) -> bytes:
        return _derived_key(self.picture, f"crop {self.box}")


@dataclass(frozen=True)
class Marked:
    """Another picture with red outlines around named boxes."""

    picture: Picture
    boxes: tuple[tuple[str, Box], ...]

    def open(self) -> Image.Image:
        image = self.picture.open()
        draw = ImageDraw.Draw(image)
        for name, (left, top, right, bottom) in self.boxes:
            corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
            draw.rectangle(corners, outline="red", width=OUTLINE)
            shown = name.encode("ascii", "replace").decode()  # the built-in font has no more
            draw.text((corners[0] + OUTLINE + 1, corners[1] + OUTLINE + 1), shown, fill="red")
        return image

    def key(self) -> bytes:
        return _derived_key(self.picture, f"marked {self.boxes}")


def _derived_key(picture: Picture, change: str) -> bytes:
    return hashlib.sha256(picture.key() + change.encode("utf-8", "surrogatepass")).digest()


def opened(image: Image.Image | Picture) -> Image.Image:
    """The image itself, opened if it is not. Raises `SampleError`."""
    return image if isinstance(image, Image.Image) else image.open()


def squashed(image: Image.Image, size: int) -> Image.Image:
    """RGB, `size` pixels a side, exactly as `VisionEncoder.preprocess` would make it."""
    if image.mode == "RGB" and image.size == (size, size):
        return image
    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def key_of(image: Image.Image | Picture) -> bytes:
    """The key of a picture, or of the pixels of an open image. Raises `SampleError`."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).digest()
    return image.key()


def shorten(text: str) -> str:
    """Text for a message: names in bad data may be of any length."""
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def reason(error: Exception) -> str:
    """What went wrong, without the path that an `OSError` repeats."""
    return getattr(error, "strerror", None) or str(error)


def read_file(path: Path, kind: str = "image") -> bytes:
    """The bytes of a file. Raises `SampleError` for one that is missing or far too large."""
    try:
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise SampleError(f"missing {kind}", f"{kind} {shorten(str(path))} {problem}")
        if path.stat().st_size > LARGEST_FILE:
            raise SampleError(f"{kind} too large", f"{kind} {path} is larger than 1 GiB")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        message = f"{kind} {shorten(str(path))} cannot be read: {reason(error)}"
        raise SampleError(f"missing {kind}", message) from error


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Decodes one file to RGB. Raises `SampleError` as `read_file` and `decode_image`."""
    return decode_image(read_file(path), str(path), max_pixels)


def decode_image(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """Decodes the bytes of one file to RGB. The size is checked before any pixel is decoded.

    Raises `SampleError` for what is larger than `max_pixels` or not a whole JPEG, PNG or WebP
    picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                check_size(image.width, image.height, max_pixels, f"image {name}")
                return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise SampleError("image too large", f"image {name}: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        problem = str(error)
        if isinstance(error, UnidentifiedImageError):  # whose text names a buffer in memory
            problem = f"not a {', '.join(FORMATS)} file"
        raise SampleError("corrupt image", f"image {name} cannot be read: {problem}") from error


def check_size(width: int, height: int, max_pixels: int, what: str) -> None:
    """Raises `SampleError` for more than `max_pixels`."""
    if width * height > max_pixels:
        raise SampleError(
            "image too large",
            f"{what} has {width} x {height} pixels, the cap is {max_pixels}",
        )
