"""Files of pictures: told by content, turned upright, on white ground, whatever else they hold."""

import io
import struct
import zlib

import numpy as np
import pyarrow
import pytest
from data_files import image_bytes, write_lines, write_tar
from PIL import Image, PngImagePlugin
from pyarrow import parquet

from metamorph.config import DataConfig
from metamorph.data.images import FORMATS, Crop, Marked, StoredImage, decode_image, key_of, opened
from metamorph.data.opening import open_source
from metamorph.data.png import picture_chunks
from metamorph.errors import SampleError

RED, WHITE = (255, 0, 0), (255, 255, 255)
GREY, COLOUR, PALETTE = 0, 2, 3  # colour types of PNG


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Image.Image:
    return decode_image(content, "picture.jpg", max_pixels=10_000)


def stored(image: Image.Image) -> StoredImage:
    content = saved(image, "PNG")
    return StoredImage("p.png", lambda: content, 10_000)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour_type: int, row: bytes, width: int, *extra: bytes) -> bytes:
    """A PNG of one row, with further chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    chunks = chunk(b"IHDR", header), *extra, pixels, chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def levels(image: Image.Image) -> list[int]:
    return np.asarray(image)[0, :, 0].tolist()


def sideways(kind: str, **options) -> bytes:
    """40 x 20, red on the left; shown turned by 90 degrees: red on top."""
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(wide, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_tells_the_format_whatever_the_name(kind):
    red, green, blue = decoded(image_bytes("red", kind=kind)).getpixel((3, 3))
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "EPS"])
def test_other_formats_are_refused_with_those_that_are_read(kind):
    with pytest.raises(SampleError, match="not a JPEG, PNG, WEBP, GIF, BMP, TIFF file") as caught:
        decoded(image_bytes(size=(16, 16), kind=kind))
    assert caught.value.cause == "corrupt image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photos_on_their_side_come_upright(kind):
    upright = decoded(sideways(kind))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[1] < 60 < upright.getpixel((10, 35))[1]


def test_boxes_are_of_the_picture_as_shown():
    content = sideways("JPEG", quality=95)
    photo = StoredImage("p.jpg", lambda: content, 10_000)
    assert Crop(photo, (0, 0, 20, 15)).open().getpixel((10, 10))[1] < 60
    with pytest.raises(SampleError, match="holds nothing of 20 x 40 pixels"):
        Crop(photo, (25, 0, 40, 15)).open()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_with_damaged_exif_data_is_a_good_picture(kind):
    content = saved(Image.new("RGB", (8, 8), "red"), kind, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert decoded(content).getpixel((3, 3))[0] > 250


def photo(progressive: bool) -> bytes:
    """A smooth ramp of grey, dark above, bright below."""
    ramp = np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1) * 4
    return saved(Image.fromarray(ramp), "JPEG", progressive=progressive, quality=95)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_last_bytes_is_used_where_that_is_asked_for(progressive):
    content = photo(progressive)
    whole = np.asarray(decoded(content)).astype(int)
    for cut in (1, 2, 3, 40):
        with pytest.raises(SampleError, match=r"truncated \([^()]*\)$") as caught:
            decoded(content[:-cut])  # not of a run: no key of one is named
        assert caught.value.cause == "corrupt image"
        used = np.asarray(decode_image(content[:-cut], "p.jpg", 10_000, "use"))
        assert used.shape == whole.shape
        assert np.abs(used[:32] - whole[:32]).max() <= (40 if progressive else 0)
    assert (np.asarray(decode_image(content, "p.jpg", 10_000, "use")) == whole).all()
    for length in (2, 20, content.index(b"\xff\xda")):  # before any pixel
        with pytest.raises(SampleError):
            decode_image(content[:length], "p.jpg", 10_000, "use")


@pytest.mark.parametrize("source", ["jsonl", "webdataset", "parquet", "pictures"])
@pytest.mark.parametrize("truncated", ["skip", "use"])
def test_every_source_does_with_a_cut_jpeg_as_it_is_told(tmp_path, source, truncated):
    content = photo(progressive=False)[:-40]
    (tmp_path / "p.jpg").write_bytes(content)
    write_lines(tmp_path / "data.jsonl", {"image": "p.jpg", "caption": "a ramp"})
    write_tar(tmp_path / "data.tar", {"0.jpg": content, "0.txt": b"a ramp"})
    table = pyarrow.Table.from_pylist([{"image": content, "caption": "a ramp"}])
    parquet.write_table(table, tmp_path / "data.parquet")
    files = {"jsonl": "data.jsonl", "webdataset": "data.tar", "parquet": "data.parquet"}
    config = DataConfig(source=source, path=str(tmp_path / files.get(source, "")))
    config.truncated = truncated
    if source != "pictures":
        config.family = "captions"
    (picture,) = open_source(config, seed=0, words=source != "pictures").sample(0).images
    if truncated == "use":
        assert picture.open().size == (64, 64)
    else:
        with pytest.raises(SampleError, match=r"\(data.truncated: use takes"):
            picture.open()


def test_a_jpeg_of_endless_scans_is_not_decoded():
    """Each goes through the whole picture: a thousand of them take a second a million pixels."""
    buffer = io.BytesIO()
    Image.new("L", (64, 48), 128).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    assert decode_image(whole[:-2] + scan * 50 + whole[-2:], "a.jpg", 10_000).size == (64, 48)
    with pytest.raises(SampleError, match=r"image a.jpg has 10\d scans, expected at most 100"):
        decode_image(whole[:-2] + scan * 100 + whole[-2:], "a.jpg", 10_000)
    film_behind_it = whole + scan * 200  # as phones write it
    assert decode_image(film_behind_it, "a.jpg", 10_000).size == (64, 48)


def test_a_jpeg_full_of_fill_is_not_decoded():
    """Pillow reads it byte by byte: a megabyte takes a second."""
    whole = saved(Image.new("L", (64, 48), 128), "JPEG")
    assert decode_image(whole[:2] + b"\xff" * 1000 + whole[2:], "a.jpg", 10_000).size == (64, 48)
    with pytest.raises(SampleError, match="has 300000 bytes of fill before its pixels"):
        decode_image(whole[:2] + b"\xff" * 300_000 + whole[2:], "a.jpg", 10_000)


def test_other_formats_are_whole_or_skipped():
    for kind in ("PNG", "WEBP", "GIF", "BMP"):
        with pytest.raises(SampleError):
            decode_image(saved(Image.effect_noise((64, 64), 50), kind)[:-200], "p", 10_000, "use")


def test_a_photo_of_several_pictures_gives_the_first():
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    assert (
        decoded(saved(first, "MPO", save_all=True, append_images=[second])).getpixel((3, 3))[0]
        > 250
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_shown(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = decoded(content).getpixel((3, 3))
    assert red > 250 and blue < 5


def test_where_a_gif_has_no_pixels_its_ground_shows():
    content = bytearray(saved(Image.new("L", (4, 4), 0), "GIF"))
    content[6:10] = struct.pack("<HH", 8, 6)  # a larger screen
    place = content.index(b"\x2c") + 1
    content[place : place + 4] = struct.pack("<HH", 2, 1)
    pixels = np.asarray(decoded(bytes(content)))
    assert pixels.shape == (6, 8, 3)
    assert pixels[1:5, 2:6].max() == 0 and pixels.sum() == (6 * 8 - 16) * 3 * 255


@pytest.mark.parametrize(("mode", "clear", "ink"), [("RGBA", (0,) * 4, (0, 0, 0, 255)),
                                                    ("LA", (0, 0), (0, 255))])  # fmt: skip
def test_transparent_pixels_do_not_show_the_colour_under_them(mode, clear, ink):
    logo = Image.new(mode, (9, 9), clear)
    logo.putpixel((4, 4), ink)
    shown = decoded(saved(logo, "PNG"))
    assert shown.getpixel((0, 0)) == WHITE and shown.getpixel((4, 4)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("depth", "row", "width", "colour", "expected"),
    [
        (1, b"\x40", 2, 1, [0, 255]),
        (2, b"\x1b", 4, 1, [0, 255, 170, 255]),
        (4, b"\x12", 2, 2, [17, 255]),
        (8, b"\x01\x02", 2, 1, [255, 2]),
        (16, b"\x01\x02\x03\x04", 2, 0x0102, [255, 3]),
    ],
)
def test_the_transparent_level_of_a_grey_png(depth, row, width, colour, expected):
    content = png(depth, GREY, row, width, chunk(b"tRNS", struct.pack(">H", colour)))
    assert levels(decoded(content)) == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png(depth):
    kind = np.dtype(">u2" if depth == 16 else "u1")
    scale = 257 if depth == 16 else 1
    row = (np.array([1, 2, 3, 4, 5, 6]) * scale).astype(kind).tobytes()
    colour = chunk(b"tRNS", (np.array([1, 2, 3]) * scale).astype(">u2").tobytes())
    shown = decoded(png(depth, COLOUR, row, 2, colour))
    assert shown.getpixel((0, 0)) == WHITE and shown.getpixel((1, 0)) == (4, 5, 6)


def test_sixteen_bit_grey_keeps_its_levels():
    ramp = Image.fromarray((np.arange(256, dtype=np.uint16)[None] * 257).repeat(4, 0))
    for kind in ("PNG", "TIFF"):
        assert levels(decoded(saved(ramp, kind))) == [*range(256)]


def grey_tiff(bits: int, white_is_zero: bool, row: bytes, width: int) -> bytes:
    """A TIFF of one row, which Pillow does not write."""
    fields = {
        256: width, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1,
        279: len(row),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(row))
    return header + row + struct.pack("<H", len(fields)) + entries + bytes(4)


def test_grey_tiffs_of_other_depths_and_with_white_at_zero():
    sixteen = struct.pack("<3H", 0, 0x1234, 0xFFFF)
    assert levels(decode_image(grey_tiff(16, False, sixteen, 3), "a.tif", 100)) == [0, 0x12, 255]
    assert levels(decode_image(grey_tiff(16, True, sixteen, 3), "a.tif", 100)) == [255, 0xED, 0]
    twelve = bytes.fromhex("000123fff800")  # 0x000, 0x123, 0xfff, 0x800
    assert levels(decode_image(grey_tiff(12, False, twelve, 4), "a.tif", 100)) == [0, 18, 255, 128]


def test_a_png_cut_off_in_what_follows_its_picture_is_whole():
    content = png(8, 0, b"\x55", 1)[:-12] + chunk(b"tEXt", b"x" * 500)[:100]
    assert levels(decode_image(content, "a.png", 100)) == [0x55]
    with pytest.raises(SampleError, match="cannot be read"):
        decode_image(png(8, 0, b"\x55", 1)[:45], "a.png", 100)


def test_what_is_beside_the_picture_in_a_png_does_not_cost_it():
    """Text beyond Pillow's cap, a large or broken colour profile, a wrong checksum of text."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (3 * 2**20), zip=True)
    info.add_itxt("XML:com.adobe.xmp", "y" * (3 * 2**20), zip=True)
    image = Image.new("RGB", (8, 8), "red")
    contents = [saved(image, "PNG", pnginfo=info, icc_profile=bytes(3 * 2**20))]
    pixel = b"\xff\0\0"
    contents += [
        png(8, COLOUR, pixel, 1, chunk(b"iCCP", b"name\0\7" + zlib.compress(b"profile"))),
        png(8, COLOUR, pixel, 1, chunk(b"iCCP", b"")),
        png(8, COLOUR, pixel, 1, chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)),
        png(8, COLOUR, pixel, 1, chunk(b"acTL", b"")),
    ]
    for content in contents:
        assert len(picture_chunks(content)) < 200
        assert decoded(content).getpixel((0, 0)) == RED


@pytest.mark.parametrize("kind", [b"eXIf", b"tRNS"])
def test_what_is_damaged_beside_the_picture_is_as_if_it_were_not_there(kind):
    wrong_checksum = chunk(kind, struct.pack(">HHH", 255, 0, 0))[:-4] + bytes(4)
    for damaged in (wrong_checksum, chunk(kind, b"\0")):
        assert decoded(png(8, COLOUR, b"\xff\0\0", 1, damaged)).getpixel((0, 0)) == RED


def test_only_whole_pngs_are_changed():
    whole = image_bytes("red")
    assert picture_chunks(whole) == whole
    jpeg = image_bytes("red", kind="JPEG")
    assert picture_chunks(jpeg) is jpeg
    for length in range(len(whole)):
        assert picture_chunks(whole[:length]) == whole[:length]
    with pytest.raises(SampleError, match="cannot be read"):
        decoded(whole[:-30])


def test_a_box_of_any_size_is_drawn_where_it_is_seen():
    plain = stored(Image.new("RGB", (64, 48), "white"))
    marked = Marked(plain, (("a", (8.0, 8.0, 1e12, 1e300)),)).open()
    assert marked.getpixel((8, 40)) == marked.getpixel((40, 8)) == RED
    assert marked.getpixel((63, 40)) == WHITE  # its right side is far beyond the picture
    all_around = Marked(plain, (("", (-1e9, -1e9, 1e9, 1e9)),)).open()
    assert all_around.tobytes() == plain.open().tobytes()


def test_names_are_drawn_up_to_a_length():
    plain = stored(Image.new("RGB", (64, 48), "white"))
    long = Marked(plain, (("hat" * 10**6, (8.0, 8.0, 40.0, 40.0)),)).open()
    short = Marked(plain, (("hat" * 20, (8.0, 8.0, 40.0, 40.0)),)).open()
    assert long.tobytes() == short.tobytes()


@pytest.mark.parametrize("box", [(70.0, 0.0, 90.0, 20.0), (0.0, -9e9, 10.0, -1.0)])
def test_a_box_outside_the_picture_marks_nothing(box):
    plain = stored(Image.new("RGB", (64, 48), "white"))
    for picture in (Marked(plain, (("a", box),)), Crop(plain, box)):
        with pytest.raises(SampleError, match="holds nothing of 64 x 48 pixels") as caught:
            picture.open()
        assert caught.value.cause == "empty box"


@pytest.mark.parametrize(
    "box", [(40.0, 0.0, 10.0, 20.0), (5.0, 9.0, 20.0, 9.2), (-1.0, 0.0, 0.4, 9.0)]
)
def test_a_crop_of_no_pixel_is_an_empty_box(box):
    with pytest.raises(SampleError, match="holds nothing") as caught:
        Crop(stored(Image.new("RGB", (64, 48))), box).open()
    assert caught.value.cause == "empty box"


def test_open_images_are_taken_and_told_apart_as_shown():
    """Two palettes with the same numbers of colours; two pictures whose clear pixels differ."""
    palettes = [Image.new("P", (2, 2)) for _ in range(2)]
    palettes[0].putpalette([255, 0, 0])
    palettes[1].putpalette([0, 0, 255])
    assert key_of(palettes[0]) != key_of(palettes[1])
    assert key_of(palettes[0]) == key_of(Image.new("RGB", (2, 2), "red"))
    clear = [Image.new("RGBA", (2, 2), (level, 0, 0, 0)) for level in (0, 9)]
    assert key_of(clear[0]) == key_of(clear[1])
    assert opened(clear[1]).getpixel((0, 0)) == WHITE
