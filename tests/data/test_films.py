"""Video files as a player shows them, and files in which something is missing, odd or damaged."""

import io
import struct
from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.data import frames as film_frames
from metamorph.data.video import evenly, open_video
from metamorph.errors import SampleError

UNTURNED = (65536, 0, 0, 65536)
CODECS = {"mp4": "libx264", "avi": "libx264", "matroska": "libx264", "webm": "libvpx"}
SUFFIXES = {"mp4": "mp4", "avi": "avi", "matroska": "mkv", "webm": "webm"}
SIZE = WIDTH, HEIGHT = 64, 48


class OneWay:
    """What cannot be gone back in, as where a browser records to."""

    def __init__(self):
        self.content = b""

    def write(self, data) -> int:
        self.content += bytes(data)
        return len(data)


@cache
def film(
    form: str, count: int = 20, rate: int = 10, pixel: int = 1, live: bool = False, first: int = 0
) -> bytes:
    """Frame n is grey of brightness 20 + 10 n; red at the upper left corner, green at the right."""
    target = OneWay() if live else io.BytesIO()
    with av.open(target, "w", format=form, options={"live": "1"} if live else {}) as container:
        stream = container.add_stream(CODECS[form], rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.codec_context.sample_aspect_ratio = Fraction(pixel)
        for number in range(count):
            pixels = np.full((HEIGHT, WIDTH, 3), 20 + 10 * number, np.uint8)
            pixels[:16, :16], pixels[:16, -16:] = (250, 0, 0), (0, 250, 0)
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts = first + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.content if live else target.getvalue()


def opened(form: str, content: bytes):
    return open_video(f"film.{SUFFIXES[form]}", content, max_pixels=10_000)


def shown(video, times) -> list[int]:
    """The numbers of the frames that are shown."""
    middles = [frame.open().resize((9, 9), Image.Resampling.BOX).getpixel((4, 5))[1]
               for frame in video.frames(times)]  # fmt: skip
    return [round((middle - 20) / 10) for middle in middles]


def header_matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


def with_matrix(matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 that its header turns; phones write their films so."""
    content = film("mp4", 2)
    unturned = header_matrix(*UNTURNED)
    place = content.index(unturned, content.index(b"tkhd"))
    return content[:place] + header_matrix(*matrix) + content[place + len(unturned) :]


@pytest.mark.parametrize("form", list(CODECS))
def test_frames_are_those_of_their_times(form):
    """AVI keeps no times: those of its frames jump back wherever a codec needs a later frame."""
    video = opened(form, film(form))
    assert (video.frame_rate, video.seconds) == (10, pytest.approx(2))
    assert shown(video, [0, 0.5, 1.0, 1.5, 1.9, 7.0]) == [0, 5, 10, 15, 19, 19]


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
def test_far_frames_where_only_the_first_can_be_sought(form):
    video = opened(form, film(form, 22, rate=1))
    assert shown(video, [0.0, 6.0, 12.5, 18.0, 21.9]) == [0, 6, 12, 18, 21]


@pytest.mark.parametrize("form", ["mp4", "matroska", "webm"])
def test_a_film_that_was_cut_out_of_another_is_as_long_as_its_frames(form):
    video = opened(form, film(form, first=50))
    assert video.seconds == pytest.approx(2)
    assert shown(video, [0, 1.5]) == [0, 15]


def test_what_a_browser_records_has_no_length_and_is_measured():
    content = film("webm", 12, rate=4, live=True)
    with av.open(io.BytesIO(content), format="matroska") as container:
        assert container.duration is None and container.streams.video[0].duration is None
    video = opened("webm", content)
    assert (video.frame_rate, video.seconds) == (pytest.approx(4), pytest.approx(3))
    assert shown(video, [0, 1, 2.8]) == [0, 4, 11]


@pytest.mark.parametrize("form", list(CODECS))
@pytest.mark.parametrize("live", [False, True])
def test_a_film_of_one_frame(form, live):
    if live and form != "webm":
        return
    video = opened(form, film(form, 1, live=live))
    assert 0 < video.seconds < 1
    assert shown(video, evenly(video.seconds, 1.0, 45)) == [0]


@pytest.mark.parametrize(
    ("matrix", "size", "red", "green"),
    [
        (UNTURNED, (64, 48), "upper left", "upper right"),
        ((0, 65536, -65536, 0), (48, 64), "upper right", "lower right"),  # by 90 degrees
        ((-65536, 0, 0, -65536), (64, 48), "lower right", "lower left"),
        ((0, -65536, 65536, 0), (48, 64), "lower left", "upper left"),
        ((-65536, 0, 0, 65536), (64, 48), "upper right", "upper left"),  # mirrored
        ((65536, 0, 0, -65536), (64, 48), "lower left", "lower right"),
        ((0, 65536, 65536, 0), (48, 64), "upper left", "lower left"),
        ((0, -65536, -65536, 0), (48, 64), "lower right", "upper right"),
        ((0, 30000, -30000, 0), (48, 64), "upper right", "lower right"),  # and made smaller
        ((0, 0, 0, 0), (64, 48), "upper left", "upper right"),
    ],
)
def test_films_are_turned_as_their_header_says(matrix, size, red, green):
    (frame,) = opened("mp4", with_matrix(matrix)).frames([0.0])
    picture = frame.open()
    assert picture.size == size
    places = {
        f"{v} {h}": picture.getpixel((x, y))
        for v, y in (("upper", 5), ("lower", size[1] - 6))
        for h, x in (("left", 5), ("right", size[0] - 6))
    }
    assert places[red][0] > 180 > 90 > places[red][1]
    assert places[green][1] > 180 > 90 > places[green][0]


def test_pixels_that_are_not_square_are_made_so():
    (frame,) = opened("mp4", film("mp4", 2, pixel=2)).frames([0.0])
    assert frame.open().size == (2 * WIDTH, HEIGHT)


def test_the_frames_of_one_sample_have_a_limit_together(monkeypatch):
    monkeypatch.setattr(film_frames, "HELD_PIXELS", 4 * WIDTH * HEIGHT)
    monkeypatch.setattr(film_frames, "LEAST_PIXELS", 100)
    video = opened("mp4", film("mp4"))
    for count, size in ((1, SIZE), (4, SIZE), (16, (WIDTH // 2, HEIGHT // 2))):
        times = [number * 0.1 for number in range(count)]
        assert {frame.open().size for frame in video.frames(times)} == {size}
        assert shown(video, times) == [*range(count)]


def without_pictures(form: str) -> bytes:
    """A file with sound alone."""
    target = io.BytesIO()
    with av.open(target, "w", format=form) as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def without_frames() -> bytes:
    """A live film whose header is whole, and nothing after it."""
    content = film("webm", live=True)
    return content[: content.index(b"\x1f\x43\xb6\x75")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.mp4", lambda: without_pictures("mp4"), "it holds no pictures"),
        ("a.mkv", lambda: without_pictures("matroska"), "it holds no pictures"),
        ("a.mp4", lambda: film("mp4").replace(b"avc1", b"xyz1"), "an unknown codec"),
        ("a.webm", without_frames, "cannot be read"),
        ("a.webm", lambda: b"", "cannot be read"),
        ("a.avi", lambda: film("mp4"), "cannot be read"),
    ],
    ids=["sound", "sound in mkv", "codec", "no frame", "empty", "another format"],
)
def test_files_without_a_film_are_corrupt_videos(name, content, problem):
    with pytest.raises(SampleError, match=problem) as caught:
        open_video(name, content(), max_pixels=10_000)
    assert caught.value.cause == "corrupt video"


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_wrong_byte_anywhere_is_a_picture_or_a_sample_error(form, place, change):
    content = bytearray(film(form, 4))
    content[int(place * len(content))] ^= change
    try:
        video = opened(form, bytes(content))
        for frame in video.frames(evenly(video.seconds, 2.0, 5)):
            assert frame.open().mode == "RGB"
    except SampleError as error:
        assert error.cause in ("corrupt video", "image too large")


def test_a_frame_without_a_time_is_refused_and_a_stamp_that_jumps_back_is_not():
    """The first is what one wrong byte makes of a Matroska file."""

    def stamps(*values) -> list[float]:
        container = SimpleNamespace(decode=lambda _: (SimpleNamespace(pts=v) for v in values))
        stream = SimpleNamespace(start_time=None, time_base=Fraction(1, 10))
        return [time for time, _ in film_frames._timed(container, stream, None)]

    assert stamps(0, 2, 1, 3) == [0, 0.2, 0.2, 0.3]
    with pytest.raises(ValueError, match="a frame without a time"):
        stamps(0, None)
