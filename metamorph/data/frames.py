"""Frames of a video file at points in time, as a player shows them.

The frames of one sample are decoded together, when the first of them is opened.
"""

import hashlib
import io
import math
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from PIL import Image

from metamorph.data.images import check_size, reason
from metamorph.errors import SampleError

SEEK_AFTER = 2.0  # seconds; a shorter gap is decoded through
EARLY = 1e-3  # seconds by which a frame may come late: time stamps are rounded
HELD_PIXELS = 50_000_000  # of all frames of a sample, which are in memory together
LEAST_PIXELS = 512 * 512  # that a large frame keeps, however many there are
WIDEST_PIXEL = 8  # times its height; a header that says more is wrong
# Where the right and the lower neighbour of a pixel are shown: what brings it there.
DISPLAY_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class VideoFile:
    """The bytes of a video, and the name of the demuxer that reads them."""

    name: str
    demuxer: str
    data: bytes = field(repr=False)
    max_pixels: int

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    @contextmanager
    def film(self, what: str) -> Generator[tuple[Any, Any], None, None]:
        """Its container and the stream of its pictures, open. What PyAV raises meanwhile, or we of
        what the file says, becomes a `SampleError`: the video cannot be `what`."""
        import av

        try:
            # Titles are often in another encoding than they should be: they cost nothing here.
            content = io.BytesIO(self.data)
            with av.open(content, format=self.demuxer, metadata_errors="ignore") as container:
                stream = _moving_pictures(container)
                size = stream.codec_context.width, stream.codec_context.height
                check_size(*size, self.max_pixels, f"video {self.name}")
                yield container, stream
        except (av.FFmpegError, ValueError, OSError, ArithmeticError, MemoryError) as error:
            message = f"video {self.name} cannot be {what}: {reason(error)}"
            raise SampleError("corrupt video", message) from error


def _moving_pictures(container) -> Any:
    """The first stream of pictures that is no cover of a song. `ValueError` if there is none."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise ValueError("it holds no pictures")
    stream = streams[0]
    if stream.codec_context is None:
        raise ValueError("its pictures are in an unknown codec")
    if not stream.time_base:
        raise ValueError("it does not say when its pictures are shown")
    stream.thread_type = "NONE"  # processes decode side by side already
    return stream


def packet_times(container, stream) -> list[int]:
    """When the pictures are shown, in order, in units of the stream's time base. Nothing is
    decoded. `ValueError` for a stream without any picture."""
    stamps = (p.pts if p.pts is not None else p.dts for p in container.demux(stream) if p.size)
    times = sorted(stamp for stamp in stamps if stamp is not None)
    if not times:
        raise ValueError("it holds no frame")
    return times


@dataclass
class Frames:
    """Frames of one file, decoded together when the first of them is opened."""

    file: VideoFile
    times: tuple[float, ...]  # seconds that never decrease
    decoded: list[Image.Image] = field(default_factory=list)

    def picture(self, number: int) -> Image.Image:
        if not self.decoded:
            self.decoded = self._decode()
        return self.decoded[number]

    def _decode(self) -> list[Image.Image]:
        order = None
        if self.file.demuxer == "avi":  # it keeps no times: a stamp is the place where a frame lies
            with self.file.film("read") as (container, stream):
                order = packet_times(container, stream)
        most = max(HELD_PIXELS // len(self.times), LEAST_PIXELS)
        pictures = []
        with self.file.film("decoded") as (container, stream):
            for frame in _shown_at(self.times, container, stream, order):
                what = f"video {self.file.name}"  # whose size may change midway
                check_size(frame.width, frame.height, self.file.max_pixels, what)
                pictures.append(_as_shown(frame, stream.sample_aspect_ratio, most))
        return pictures


def _shown_at(times: Sequence[float], container, stream, order: list[int] | None) -> Iterator[Any]:
    """The last frame that begins no later than each of the times. `order`: see `_timed`."""
    frames = _timed(container, stream, order)
    shown, following = None, next(frames, None)
    may_seek = order is None
    for time in times:
        if may_seek and following is not None and time - following[0] > SEEK_AFTER:
            reached = following[0]
            stamp = Fraction(time) / stream.time_base + (stream.start_time or 0)
            container.seek(int(stamp), stream=stream)
            frames = _timed(container, stream, order)
            shown, following = None, next(frames, None)
            # Where no frame but the first can be sought, seeking again would begin there again.
            may_seek = following is not None and following[0] >= reached
        while following is not None and (shown is None or following[0] <= time + EARLY):
            shown, following = following, next(frames, None)
        if shown is None:
            raise ValueError(f"it holds no frame at {time:.1f} s")
        yield shown[1]


def _timed(container, stream, order: list[int] | None) -> Iterator[tuple[float, Any]]:
    """Each frame with the seconds from the start at which it is shown, which never decrease.

    `order`: the stamps of all frames, sorted, where those of the frames do not tell their order.
    """
    last = -math.inf
    for number, frame in enumerate(container.decode(stream)):
        if order is not None:
            stamp = order[min(number, len(order) - 1)] - order[0]
        elif frame.pts is not None:
            stamp = frame.pts - (stream.start_time or 0)
        else:
            raise ValueError("it holds a frame without a time")
        last = max(last, float(stamp * stream.time_base))
        yield last, frame


def _as_shown(frame, pixel_shape: Fraction | None, most: int) -> Image.Image:
    """A frame in RGB, turned as the file says and with square pixels, of `most` pixels or fewer.

    `pixel_shape`: width of a stored pixel over its height.
    """
    width, height = frame.width, frame.height
    if pixel_shape and 1 / WIDEST_PIXEL <= pixel_shape <= WIDEST_PIXEL:
        width, height = round(width * max(pixel_shape, 1)), round(height / min(pixel_shape, 1))
    shrink = min(math.sqrt(most / (width * height)), 1)
    image = frame.to_image(width=max(int(width * shrink), 1), height=max(int(height * shrink), 1))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    turn = None if matrix is None else DISPLAY_TURNS.get(_nearest_turn(bytes(matrix)))
    return image if turn is None else image.transpose(turn)


def _nearest_turn(matrix: bytes) -> tuple[int, int, int, int]:
    """A 3 x 3 display matrix as a turn by quarters: signs of its upper left 2 x 2 part."""
    a, b, _, c, d, *_ = struct.unpack_from("=9i", matrix)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _sign(a), 0, 0, _sign(d)
    return 0, _sign(b), _sign(c), 0


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


@dataclass(frozen=True)
class VideoFrame:
    """One of several frames that are decoded together."""

    frames: Frames
    number: int

    def open(self) -> Image.Image:
        return self.frames.picture(self.number)

    def key(self) -> bytes:
        time = self.frames.times[self.number]
        name = f"frame at {time:.6f} s".encode()
        return hashlib.sha256(self.frames.file.digest + name).digest()
