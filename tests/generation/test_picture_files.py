"""A drawing as a PNG: any viewer opens it, the model reads back what it predicted, and a file that
somebody made up is refused in one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.data.png import SIGNATURE, chunks
from metamorph.errors import SampleError, UserError
from metamorph.generation import picture_files
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import CHUNK, HEADER, drawing_of, png_bytes

TOKENS, WIDTH, MAX_PIXELS = 4, 24, 10_000


def drawing(seed: int = 0, size: int = 16) -> Drawing:
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(
        torch.randn(TOKENS, WIDTH, generator=generator), dim=-1
    )
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
    return Drawing(features, Image.fromarray(pixels.numpy()))


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> Drawing | None:
    return drawing_of(data, TOKENS, WIDTH, max_pixels)


def chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", checksum)


def with_payload(payload: bytes, kind: bytes = CHUNK) -> bytes:
    """A sound PNG with this chunk behind its header."""
    file = io.BytesIO()
    drawing().picture.save(file, "PNG")
    data, header = file.getvalue(), len(SIGNATURE) + 25
    return data[:header] + chunk(kind, payload) + data[header:]


def payload(values=None, shape=(TOKENS, WIDTH), version=1) -> bytes:
    values = drawing().features if values is None else values
    return HEADER.pack(version, *shape) + np.asarray(values, ">f2").tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_was_predicted_comes_back_with_the_picture(mode):
    made = drawing()
    made = Drawing(made.features, made.picture.convert(mode))
    back = read(png_bytes(made))
    assert back.features.dtype == torch.float32
    assert torch.equal(back.features, made.features.half().float())
    assert back.picture.tobytes() == made.picture.convert("RGB").tobytes()
    again = read(png_bytes(back))  # nothing is lost a second time
    assert torch.equal(again.features, back.features)


def test_a_viewer_opens_it_and_an_editor_leaves_the_features_out():
    made = drawing()
    with Image.open(io.BytesIO(png_bytes(made))) as image:
        assert image.format == "PNG" and image.tobytes() == made.picture.tobytes()
        edited = io.BytesIO()
        image.rotate(90).save(edited, "PNG")
    assert read(edited.getvalue()) is None


def test_the_chunk_has_a_name_as_the_standard_asks():
    ancillary, private, reserved, safe_to_copy = (bool(letter & 0x20) for letter in CHUNK)
    assert (ancillary, private, reserved, safe_to_copy) == (True, True, False, False)
    kinds = [kind for kind, _, _ in chunks(png_bytes(drawing()))]
    assert kinds == [b"IHDR", CHUNK, b"IDAT", b"IEND"]


def test_pictures_without_features_are_no_drawings():
    for kind in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        drawing().picture.save(file, kind)
        assert read(file.getvalue()) is None
    assert read(b"") is None and read(SIGNATURE) is None and read(b"no picture") is None


def test_a_drawing_without_pixels_makes_no_file():
    with pytest.raises(ValueError, match="expected one with a picture"):
        png_bytes(Drawing(drawing().features))


LONG = 2 * drawing().features
NOT_FINITE = [drawing().features.clone() for _ in range(2)]
NOT_FINITE[0][1, 2], NOT_FINITE[1][3, 23] = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (with_payload(b""), "cut off after 0 bytes"),
        (with_payload(payload()[:8]), "cut off after 8 bytes"),
        (with_payload(payload(version=2)), "are of version 2, expected 1"),
        (
            with_payload(payload(shape=(WIDTH, TOKENS))),
            "24 of width 4, another model's; exp",
        ),
        (with_payload(payload(shape=(2**32 - 1, 2**32 - 1))), "4294967295 of width 4294967295"),
        (with_payload(payload()[:-2]), "take 199 bytes, expected 201"),
        (with_payload(payload() + b"\0"), "take 202 bytes, expected 201"),
        (with_payload(payload(LONG)), "not unit vectors"),
        (with_payload(payload(0 * LONG)), "not unit vectors"),
        (with_payload(payload(NOT_FINITE[0])), "not unit vectors"),
        (with_payload(payload(NOT_FINITE[1])), "not unit vectors"),
        (with_payload(payload()).replace(CHUNK, CHUNK + b"x", 1), "cut or changed on the way"),
        (with_payload(payload())[:-300], "image file is truncated"),
        (with_payload(payload())[:100], "cut or changed on the way"),
        (png_bytes(drawing())[:33] + 2 * chunk(CHUNK, payload()), "2 sets of features"),
    ],
)
def test_what_is_damaged_or_made_up_is_refused_in_a_sentence(data, problem):
    with pytest.raises((UserError, SampleError), match=problem) as caught:
        read(data)
    assert "\n" not in str(caught.value) and "picture with features" in str(caught.value)


def test_a_changed_bit_of_the_features_is_seen():
    data = bytearray(png_bytes(drawing()))
    data[data.index(CHUNK) + 4 + HEADER.size + 11] ^= 1
    with pytest.raises(UserError, match="cut or changed on the way"):
        read(bytes(data))


def test_a_picture_above_the_cap_is_refused_before_it_is_decoded():
    with pytest.raises(SampleError, match="16 x 16 pixels, the cap is 255"):
        read(png_bytes(drawing()), max_pixels=255)


def test_damaged_features_are_refused_before_the_picture_is_decoded(monkeypatch):
    monkeypatch.setattr(picture_files, "decode_image", None)
    with pytest.raises(UserError, match="not unit vectors"):
        read(with_payload(payload(LONG)))


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_whatever_a_chunk_holds_it_is_features_or_refused(content, behind_a_header):
    held = (HEADER.pack(1, TOKENS, WIDTH) if behind_a_header else b"") + content
    try:
        found = read(with_payload(held))
    except UserError:
        return
    assert found.features.shape == (TOKENS, WIDTH)
