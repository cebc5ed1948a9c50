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
from PIL.GifImagePlugin import GifImageFile

from metamorph.config.data_keys import Truncated
from metamorph.data.jpeg import too_slow
from metamorph.data.png import picture_chunks
from metamorph.errors import SampleError
from metamorph.pixels import GROUND, as_shown

# How files become pixels. It goes up whenever the pixels of some file change, and is kept beside
# cached features, so that those of two ways are never mixed: 1 stored pixels, 2 pictures as shown.
DECODING = 2
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # told by content, whatever the name
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
LONGEST_SHOWN = 200
LARGEST_FILE = 2**30  # bytes of one image or video; more is never read into memory
OUTLINE = 5  # pixels, of a marked box
LONGEST_MARK = 60  # letters of the name beside it

Box = tuple[float, float, float, float]  # x and y of the top left, then of the bottom right


class Picture(Protocol):
    """An image that is not open yet."""

    def open(self) -> Image.Image:
        """The image in RGB, as shown. Raises `SampleError`."""

    def key(self) -> bytes:
        """32 bytes that are the same for the same content only. Raises `SampleError`."""


@dataclass(frozen=True)
class StoredImage:
    """One file of `FORMATS`, wherever its bytes lie."""

    name: str  # for messages
    read: Callable[[], bytes]  # raises SampleError
    max_pixels: int
    truncated: Truncated = "skip"

    def open(self) -> Image.Image:
        content = self.read()
        try:
            return decode_image(content, self.name, self.max_pixels, self.truncated)
        except SampleError as error:
            if error.cause != "corrupt image" or self.truncated == "use" or not is_cut(content):
                raise
            hint = "data.truncated: use takes what is there of a JPEG"
            raise SampleError(error.cause, f"{error} ({hint})") from error

    def key(self) -> bytes:
        return hashlib.sha256(self.read()).digest()


@dataclass(frozen=True)
class Crop:
    """A part of another picture."""

    picture: Picture
    box: Box  # in pixels

    def open(self) -> Image.Image:
        image = self.picture.open()
        left, top, right, bottom = _inside(self.box, image)
        inside = round(left), round(top), round(right), round(bottom)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise _empty(self.box, image)
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
            beside = OUTLINE + 1  # a side beyond the picture stays beyond it
            left, top, right, bottom = _inside(corners, image, beside)
            if right < 0 or bottom < 0 or left >= image.width or top >= image.height:
                raise _empty(corners, image)
            draw.rectangle((left, top, right, bottom), outline="red", width=OUTLINE)
            # The built-in font has no more than ASCII, and text is drawn in full where it is long.
            letters = name[:LONGEST_MARK].encode("ascii", "replace").decode()
            draw.text((left + beside, top + beside), letters, fill="red")
        return image

    def key(self) -> bytes:
        return _derived_key(self.picture, f"marked {self.boxes}")


def _inside(box: Box, image: Image.Image, margin: int = 0) -> Box:
    """The box, cut to the image and `margin` pixels around it."""
    left, right = (min(max(x, -margin), image.width + margin) for x in (box[0], box[2]))
    top, bottom = (min(max(y, -margin), image.height + margin) for y in (box[1], box[3]))
    return left, top, right, bottom


def _empty(box: Box, image: Image.Image) -> SampleError:
    size = f"{image.width} x {image.height}"
    return SampleError("empty box", f"box {list(box)} holds nothing of {size} pixels")


def _derived_key(picture: Picture, change: str) -> bytes:
    return hashlib.sha256(picture.key() + change.encode("utf-8", "surrogatepass")).digest()


def opened(image: Image.Image | Picture) -> Image.Image:
    """The image in RGB, as shown. Raises `SampleError` for a picture that cannot be opened."""
    return as_shown(image) if isinstance(image, Image.Image) else image.open()


def key_of(image: Image.Image | Picture) -> bytes:
    """The key of a picture, or of the pixels that an open image shows. Raises `SampleError`."""
    if isinstance(image, Image.Image):
        shown = as_shown(image)
        return hashlib.sha256(f"{shown.mode} {shown.size} ".encode() + shown.tobytes()).digest()
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


def is_cut(content: bytes) -> bool:
    """Whether a file is a JPEG without its end."""
    return content.startswith(JPEG_START) and not content.rstrip(b"\0").endswith(JPEG_END)


def decode_image(
    content: bytes, name: str, max_pixels: int, truncated: Truncated = "skip"
) -> Image.Image:
    """The picture of one file in RGB, as a viewer shows it (see `as_shown`), of several the first.

    The size is checked before any pixel is decoded. Raises `SampleError` for what is larger than
    `max_pixels` or not a whole picture in one of `FORMATS`. `truncated`: a JPEG that lacks its last
    bytes is one of them, or is used with grey in place of what they held.
    """
    if truncated == "use" and is_cut(content):
        content += JPEG_END  # what libjpeg waits for; it fills up what came before
    if content.startswith(JPEG_START) and (problem := too_slow(content)):
        raise SampleError("corrupt image", f"image {name} {problem}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about what is odd in the file
            with Image.open(io.BytesIO(picture_chunks(content)), formats=FORMATS) as image:
                check_size(image.width, image.height, max_pixels, f"image {name}")
                covered = _first_frame(image)
                image.load()
                shown = as_shown(image)
    except SampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SampleError("image too large", f"image {name}: {error}") from error
    except UnidentifiedImageError as error:  # whose text names a buffer in memory
        problem = f"image {name} is not a {', '.join(FORMATS)} file"
        raise SampleError("corrupt image", problem) from error
    except Exception as error:  # damaged bytes make Pillow raise errors of many types
        problem = f"image {name} cannot be read: {str(error) or type(error).__name__}"
        raise SampleError("corrupt image", problem) from error
    if covered is None or covered == (0, 0, *shown.size):
        return shown
    ground = Image.new("RGB", shown.size, GROUND)
    ground.paste(shown.crop(covered), covered)
    return ground


def _first_frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF that its first frame covers; its other pixels show the ground."""
    return image.tile[0].extents if isinstance(image, GifImageFile) and image.tile else None


def check_size(width: int, height: int, max_pixels: int, what: str) -> None:
    """Raises `SampleError` for more than `max_pixels`."""
    if width * height > max_pixels:
        raise SampleError(
            "image too large",
            f"{what} has {width} x {height} pixels, the cap is {max_pixels}",
        )
