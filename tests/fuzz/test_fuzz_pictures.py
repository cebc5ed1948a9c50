"""Pictures, drawings and films of every kind, broken: each is read, or refused in one line."""

import io
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from metamorph.data.images import decode_image
from metamorph.data.png import chunks
from metamorph.data.video import evenly, open_video
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import CHUNK, drawing_of, png_bytes
from tests.fuzz.breaking import broken_bytes

MAX_PIXELS = 100_000


def write_pictures(folder: Path) -> None:
    """One small picture of each kind that a reader treats in its own way."""
    ramp = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40)
    colour = Image.fromarray(np.stack([ramp % 256, ramp // 5, 255 - ramp % 256], -1).astype("u1"))
    turned = Image.Exif()
    turned[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 20_000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x/>" * 100)
    frames = [colour, colour.rotate(180)]
    clear = colour.convert("RGBA")
    clear.putalpha(100)
    animated = {"save_all": True, "append_images": frames[1:]}
    for name, image, options in (
        ("turned.jpg", colour, {"exif": turned}),
        ("progressive.jpg", colour, {"progressive": True, "icc_profile": b"icc" * 500}),
        ("inks.jpg", colour.convert("CMYK"), {}),
        ("grey.jpg", colour.convert("L"), {}),
        ("text.png", colour, {"pnginfo": text}),
        ("clear.png", clear, {"exif": turned}),
        ("palette.png", colour.quantize(16), {"transparency": 3}),
        ("deep.png", Image.fromarray(ramp * 50), {}),
        ("bits.png", colour.convert("1"), {}),
        ("animated.png", colour, animated),
        ("lossy.webp", colour, {"exif": turned}),
        ("clear.webp", clear, {"lossless": True}),
        ("animated.webp", colour, animated),
        ("animated.gif", colour, animated),
        ("clear.gif", colour.quantize(16), {"transparency": 3}),
        ("plain.bmp", colour, {}),
        ("palette.bmp", colour.quantize(16), {}),
        ("plain.tif", colour, {}),
        ("packed.tif", clear, {"compression": "tiff_lzw"}),
        ("deep.tif", Image.fromarray(ramp * 50), {"compression": "tiff_adobe_deflate"}),
        ("float.tif", Image.fromarray(ramp.astype(np.float32) / 1200), {}),
        ("pages.tif", colour, animated),
        ("phone.mpo", colour, animated),
    ):
        image.save(folder / name, **options)


def attack_picture(chance: Random, folder: Path) -> str:
    path = chance.choice(sorted(folder.iterdir()))
    picture = decode_image(broken_bytes(chance, path.read_bytes()), path.name, MAX_PIXELS)
    assert picture.mode == "RGB" and picture.width * picture.height <= MAX_PIXELS
    picture.tobytes()
    return "read"


@pytest.mark.slow
def test_pictures(fuzzed, tmp_path):
    write_pictures(tmp_path)
    fuzzed(attack_picture, 2000)


def write_drawings(folder: Path) -> None:
    """Pictures of a model, with the features that they were drawn from inside."""
    for number, size in enumerate((8, 40)):
        features = torch.nn.functional.normalize(torch.randn(4, 24), dim=-1)
        ramp = np.arange(size * size * 3, dtype=np.uint8).reshape(size, size, 3)
        made = png_bytes(Drawing(features, Image.fromarray(ramp)))
        (folder / f"{number}.png").write_bytes(made)


def attack_drawing(chance: Random, folder: Path) -> str:
    data = chance.choice(sorted(folder.iterdir())).read_bytes()
    if chance.random() < 0.5:
        data = broken_bytes(chance, data)
    else:  # what no checksum tells
        [(start, end)] = [(start, end) for kind, start, end in chunks(data) if kind == CHUNK]
        held = CHUNK + broken_bytes(chance, data[start + 8 : end - 4])
        sizes = len(held) - 4, zlib.crc32(held)
        broken = sizes[0].to_bytes(4, "big") + held + sizes[1].to_bytes(4, "big")
        data = data[:start] + broken + data[end:]
    drawing = drawing_of(data, 4, 24, MAX_PIXELS)
    if drawing is None:
        return "no features"
    assert drawing.features.shape == (4, 24) and drawing.features.isfinite().all()
    drawing.picture.tobytes()
    return "read"


@pytest.mark.slow
def test_drawings(fuzzed, tmp_path):
    write_drawings(tmp_path)
    fuzzed(attack_drawing, 1000)


def write_films(folder: Path) -> None:
    av = pytest.importorskip("av")
    for name, codec in (
        ("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        form = {"mkv": "matroska"}.get(name[2:], name[2:])
        with av.open(buffer, "w", format=form) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for number in range(12):
                grey = np.full((32, 32, 3), 20 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
            container.mux(stream.encode())
        (folder / name).write_bytes(buffer.getvalue())


def attack_film(chance: Random, folder: Path) -> str:
    path = chance.choice(sorted(folder.iterdir()))
    film = open_video(path.name, broken_bytes(chance, path.read_bytes()), MAX_PIXELS)
    times = evenly(film.seconds, 2.0, 8)
    assert len(times) <= 8
    for picture in film.frames(times):
        assert picture.open().mode == "RGB"
    return "read"


@pytest.mark.slow
def test_films(fuzzed, tmp_path):
    write_films(tmp_path)
    fuzzed(attack_film, 400)
