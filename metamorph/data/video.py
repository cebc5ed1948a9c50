"""Videos as pictures at points in time: folders of frames, or files that PyAV decodes.

Nothing is decoded before a picture is opened; the frames of one sample are then decoded together.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath

import torch
from PIL import Image

from metamorph.data.images import Picture, check_size, reason
from metamorph.errors import SampleError
from metamorph.libraries import require

# The demuxer is chosen by name, never guessed: playlists could make it read other files.
DEMUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska"}
DEMUXERS |= {".avi": "avi"}
SEEK_AFTER = 2.0  # seconds; a shorter gap is decoded through
EARLY = 1e-3  # seconds by which a frame may come late: time stamps are rounded


@dataclass(frozen=True)
class Video:
    """Frames that can be asked for by time. `seconds`: where the last one ends."""

    name: str
    frame_rate: float  # frames a second
    seconds: float
    content: "VideoFile | tuple[Picture, ...]"

    @classmethod
    def of_pictures(cls, name: str, pictures: Sequence[Picture], frame_rate: float) -> "Video":
        """A folder of frames. Raises `SampleError` if it is empty."""
        if not pictures:
            raise SampleError("missing video", f"video {name}: the folder holds no frames")
        return cls(name, frame_rate, len(pictures) / frame_rate, tuple(pictures))

    def frames(self, times: Sequence[float]) -> tuple[Picture, ...]:
        """The pictures shown at `times`, seconds that never decrease."""
        if isinstance(self.content, VideoFile):
            wanted = Frames(self.content, tuple(times))
            return tuple(VideoFrame(wanted, number) for number in range(len(times)))
        last = len(self.content) - 1
        places = (int(time * self.frame_rate + EARLY) for time in times)
        return tuple(self.content[min(place, last)] for place in places)


@dataclass(frozen=True)
class VideoFile:
    """The bytes of a video."""

    name: str
    data: bytes = field(repr=False)
    max_pixels: int

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    def container(self):
        """It, open. PyAV's own errors come through."""
        import av

        demuxer = DEMUXERS[PurePath(self.name).suffix.lower()]
        return av.open(io.BytesIO(self.data), format=demuxer)


def open_video(name: str, data: bytes, max_pixels: int) -> Video:
    """A video file. Raises `UserError` without PyAV and `SampleError` for an unusable file."""
    require("a video file", ["av"], torch.device("cpu"))
    import av

    suffix = PurePath(name).suffix.lower()
    if suffix not in DEMUXERS:
        expected = ", ".join(DEMUXERS)
        raise SampleError("corrupt video", f"video {name}: expected one of {expected}")
    file = VideoFile(name, data, max_pixels)
    try:
        with file.container() as container:
            if not container.streams.video:
                raise SampleError("corrupt video", f"video {name} holds no pictures")
            stream = container.streams.video[0]
            size = stream.codec_context.width, stream.codec_context.height
            check_size(*size, max_pixels, f"video {name}")
            frame_rate = float(stream.average_rate or 0)
            if stream.duration:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
    except (av.FFmpegError, ValueError, OSError) as error:
        raise SampleError(
            "corrupt video", f"video {name} cannot be read: {reason(error)}"
        ) from error
    if not seconds > 0 or not frame_rate > 0:
        raise SampleError("corrupt video", f"video {name} does not say how long it is")
    return Video(name, frame_rate, seconds, file)


@dataclass
class Frames:
    """Frames of one file, decoded together when the first of them is opened."""

    file: VideoFile
    times: tuple[float, ...]
    decoded: list[Image.Image] = field(default_factory=list)

    def picture(self, number: int) -> Image.Image:
        if not self.decoded:
            self.decoded = self._decode()
        return self.decoded[number]

    def _decode(self) -> list[Image.Image]:
        import av

        try:
            with self.file.container() as container:
                return [self._checked(frame).convert("RGB") for frame in self._walk(container)]
        except (av.FFmpegError, ValueError, OSError) as error:
            message = f"video {self.file.name} cannot be decoded: {reason(error)}"
            raise SampleError("corrupt video", message) from error

    def _checked(self, frame) -> Image.Image:
        what = f"video {self.file.name}"
        check_size(frame.width, frame.height, self.file.max_pixels, what)  # it may change midway
        return frame.to_image()

    def _walk(self, container):
        """The last frame that begins no later than each of the times."""
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # processes decode side by side already
        start = float((stream.start_time or 0) * stream.time_base)
        frames = container.decode(stream)
        shown, following = None, next(frames, None)
        for time in self.times:
            time += start + EARLY
            if following is not None and time - following.time > SEEK_AFTER:
                container.seek(int(time / stream.time_base), stream=stream)
                frames = container.decode(stream)
                shown, following = None, next(frames, None)
            while following is not None and (shown is None or following.time <= time):
                shown, following = following, next(frames, None)
            if shown is None:
                raise ValueError("it holds no frame")
            yield shown


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


def evenly(seconds: float, frames_per_second: float, max_frames: int) -> list[float]:
    """Times of the frames to show of a video: every `1 / frames_per_second` s from its start.

    If that is more than `max_frames`, so many spread evenly over the whole video.
    """
    count = max(int(seconds * frames_per_second + EARLY), 1)
    if count <= max_frames:
        return [number / frames_per_second for number in range(count)]
    return [number * seconds / max_frames for number in range(max_frames)]
