"""Pictures of the model as PNG files that carry what it predicted.

The features stand in a chunk of their own, which viewers pass over. A picture that comes back in a
later turn is read as the features that it was drawn from, whichever process drew it.
"""

import io
import struct

import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo

from metamorph.data.images import decode_image
from metamorph.data.png import SIGNATURE, chunks, is_sound
from metamorph.errors import UserError
from metamorph.generation.messages import Drawing

# By the case of its letters: ancillary (a viewer may pass over it), private, and unsafe to copy: an
# editor that does not know it leaves it out of a changed picture, which these features are not of.
CHUNK = b"mmFT"
HEADER = struct.Struct(">BII")  # version, tokens, C; then [tokens, C] big-endian float16
VERSION = 1
ROUNDING = 2e-3  # of the length of a unit vector whose values were rounded to float16
NAME = "picture with features"


def png_bytes(drawing: Drawing) -> bytes:
    """A PNG file of a drawing that has pixels, with its features [tokens, C] inside as float16.

    Raises `ValueError` for one without pixels.
    """
    if drawing.picture is None:
        raise ValueError("drawing: expected one with a picture, got features alone")
    values = drawing.features.detach().cpu().numpy().astype(">f2")
    inside = PngInfo()
    inside.add(CHUNK, HEADER.pack(VERSION, *values.shape) + values.tobytes())
    file = io.BytesIO()
    drawing.picture.save(file, "PNG", pnginfo=inside)
    return file.getvalue()


def drawing_of(data: bytes, tokens: int, width: int, max_pixels: int) -> Drawing | None:
    """The drawing that `png_bytes` wrote: its features [tokens, width] fp32, rounded to float16.

    None for a picture without features, of whatever format. All is checked before any pixel is
    decoded. Raises `UserError` for features that are damaged or another model's, `SampleError` for
    a picture that is damaged or has more than `max_pixels`.
    """
    if not data.startswith(SIGNATURE):
        return None
    found = [(start, end) for kind, start, end in chunks(data) if kind == CHUNK]
    if not found:
        return None
    if len(found) > 1:
        raise _damaged(f"it has {len(found)} sets of features, expected one")
    [(start, end)] = found
    chunk = memoryview(data)[start:end]
    if end > len(data) or not is_sound(chunk):
        raise _damaged("its features were cut or changed on the way")
    features = _features(chunk[8:-4], tokens, width)
    return Drawing(features, decode_image(data, NAME, max_pixels))


def _features(payload: memoryview, tokens: int, width: int) -> torch.Tensor:
    if len(payload) < HEADER.size:
        raise _damaged(f"its features are cut off after {len(payload)} bytes")
    version, *shape = HEADER.unpack_from(payload)
    if version != VERSION:
        raise _damaged(f"its features are of version {version}, expected {VERSION}")
    if shape != [tokens, width]:
        raise UserError(
            f"{NAME}: its features are {shape[0]} of width {shape[1]}, another model's; "
            f"expected {tokens} of width {width}"
        )
    expected = HEADER.size + 2 * tokens * width
    if len(payload) != expected:
        raise _damaged(f"its features take {len(payload)} bytes, expected {expected}")
    values = np.frombuffer(payload, ">f2", offset=HEADER.size).astype(np.float32)
    features = torch.from_numpy(values.reshape(tokens, width))
    if not ((features.norm(dim=-1) - 1).abs() <= ROUNDING).all():  # nor is NaN
        raise _damaged("its features are not unit vectors")
    return features


def _damaged(problem: str) -> UserError:
    return UserError(f"{NAME}: {problem}")
