"""Any Pillow image becomes the RGB picture that a viewer shows."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from metamorph.pixels import TURNS, Square, as_shown

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
MODES = (
    "1", "L", "LA", "La", "PA", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
    "I", "F", "I;16", "I;16L", "I;16B", "I;16N",
)  # fmt: skip


def grey(image: Image.Image) -> list[int]:
    """The levels of the first row, which must be grey."""
    pixels = np.asarray(image)[0]
    assert image.mode == "RGB" and (pixels == pixels[:, :1]).all()
    return pixels[:, 0].tolist()


def with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[0x0112] = orientation
    return image


def corners(mode: str = "RGB") -> Image.Image:
    """Wide, with another level in each corner, so that every turn is told from every other."""
    image = Image.new("L", (6, 4), 128)
    for place, level in zip(((0, 0), (5, 0), (0, 3), (5, 3)), (0, 60, 180, 250), strict=True):
        image.putpixel(place, level)
    return image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_becomes_rgb_of_the_same_size(mode):
    shown = as_shown(Image.new(mode, (5, 3)))
    assert (shown.mode, shown.size, shown.info) == ("RGB", (5, 3), {})


def test_plain_rgb_stays_the_very_image():
    image = Image.new("RGB", (5, 3), RED)
    image.info["dpi"] = (72, 72)
    assert as_shown(image) is image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I"])
def test_pictures_are_turned_as_pillow_turns_them_and_once(orientation, mode):
    image = with_orientation(corners(mode), orientation)
    shown = as_shown(image)
    expected = ImageOps.exif_transpose(image).convert("RGB")
    assert shown.size == expected.size and shown.tobytes() == expected.tobytes()
    assert as_shown(shown).tobytes() == shown.tobytes()
    assert image.size == (6, 4)  # the caller's own image is as it was


@pytest.mark.parametrize(
    "damage", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk" * 9]
)
def test_damaged_exif_data_do_not_cost_the_picture(damage):
    image = Image.new("RGB", (5, 3), RED)
    image.info["exif"] = damage
    assert as_shown(image).getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", [0, 9, 65535, b"\1", (6, 6), "up"])
def test_orientations_that_there_are_not_turn_nothing(orientation):
    assert as_shown(with_orientation(corners(), orientation)).size == (6, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_what_is_clear_is_white_and_what_is_half_clear_is_mixed_with_white(mode):
    written = {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    image = Image.new(written, (3, 1))  # black
    image.putalpha(Image.fromarray(np.array([[0, 128, 255]], np.uint8)))
    assert grey(as_shown(image.convert(mode))) == [255, 127, 0]


def test_transparency_of_palettes_and_of_one_colour():
    palette = Image.new("P", (3, 1))
    palette.putpalette([*BLACK, *BLACK, *RED])
    palette.putdata([0, 1, 2])
    for transparency in (0, b"\x00\xff\xff"):
        palette.info["transparency"] = transparency
        shown = as_shown(palette)
        assert [shown.getpixel((x, 0)) for x in range(3)] == [WHITE, BLACK, RED]
    del palette.info["transparency"]
    palette.putpalette([*BLACK, 0, *BLACK, 255, *RED, 255], "RGBA")
    shown = as_shown(palette)
    assert [shown.getpixel((x, 0)) for x in range(3)] == [WHITE, BLACK, RED]
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    colour.info["transparency"] = (1, 2, 3)
    greys = [Image.new(mode, (1, 1)) for mode in ("1", "L", "I;16")]
    for image in greys:
        image.info["transparency"] = 0
    for image in (colour, *greys):
        assert as_shown(image).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_what_an_earlier_mode_left_behind_does_not_cost_the_picture(mode):
    image = Image.new(mode, (1, 1))
    image.info["transparency"] = b"\x00"
    assert as_shown(image).mode == "RGB"


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_keep_their_upper_eight(order):
    values = np.array([[0, 255, 256, 32768, 65535]], order)
    assert grey(as_shown(Image.fromarray(values))) == [0, 0, 1, 128, 255]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_whole_numbers_are_those_of_eight_or_of_sixteen_bits(values):
    image = Image.fromarray(np.array([values], np.int32))
    shift = 8 if max(values) > 255 else 0
    assert image.mode == "I" and grey(as_shown(image)) == [value >> shift for value in values]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        ([0, 1, 100.4, 255], [0, 1, 100, 255]),
        ([0, 257, 65535, 1000], [0, 1, 255, 4]),
        ([0, 5e8, 1e9, 1e9], [0, 128, 255, 255]),
        ([-3, np.nan, np.inf, 1], [0, 0, 255, 255]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_floats(values, levels):
    assert grey(as_shown(Image.fromarray(np.array([values], np.float32)))) == levels


def test_whole_numbers_beyond_sixteen_bits_and_below_zero():
    image = Image.fromarray(np.array([[-5, 0, 2**30, 2**31 - 1]], np.int32))
    assert grey(as_shown(image)) == [0, 0, 128, 255]


def test_inks_of_an_adobe_jpeg_are_not_inverted_twice():
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    red, green, blue = as_shown(Image.open(buffer)).getpixel((4, 4))
    assert red > 245 and green < 10 and blue < 10


def test_a_square_takes_pictures_as_shown():
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLACK, (0, 0, 4, 4))
    with_orientation(image, 6)
    square = Square(2, Image.Resampling.BOX)(image)  # upright: black above red
    assert [square.getpixel((0, y)) for y in range(2)] == [BLACK, RED]
    assert Square(2)(square) is square


def test_turns_are_all_that_exif_knows():
    assert sorted(TURNS) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("size, expected", [((5, 2), 1), ((2, 5), 1), ((1, 9), 4), ((3, 3), 0)])
def test_cropping_takes_the_middle_and_squashes_nothing(size, expected):
    """Each pixel tells how far it is from the left or top."""
    values = np.maximum.outer(np.arange(size[1]), np.arange(size[0]))
    image = Image.fromarray(values.astype(np.uint8))
    square = Square(min(size), fit="crop")(image)
    assert square.size == (min(size),) * 2
    assert square.getpixel((0, 0))[0] == expected
