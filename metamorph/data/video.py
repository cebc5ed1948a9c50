"""Videos as pictures at points in time: folders of frames, or files that PyAV decodes.

Nothing is decoded before a picture is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch

from metamorph.data.frames import EARLY, Frames, VideoFile, VideoFrame, packet_times
from metamorph.data.images import Picture
from metamorph.errors import SampleError
from metamorph.libraries import require

# The demuxer is chosen by name, never guessed: playlists could make it read other files.
DEMUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska"}
DEMUXERS |= {".avi": "avi"}
FASTEST = 1000.0  # frames a second; a header that says more says nothing
SLOWEST = 1e-6  # of a folder of frames: one in eleven days
LONGEST = 1e6  # seconds; the same
USUAL_RATE = 25.0  # frames a second, of a film of one frame that does not say how long it is


@dataclass(frozen=True)
class Video:
    """Frames that can be asked for by time. `seconds`: where the last one ends."""

    name: str
    frame_rate: float  # frames a second
    seconds: float
    content: VideoFile | tuple[Picture, ...]

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


def open_video(name: str, data: bytes, max_pixels: int) -> Video:
    """A video file. Raises `UserError` without PyAV and `SampleError` for an unusable file."""
    require("a video file", ["av"], torch.device("cpu"))
    import av

    suffix = PurePath(name).suffix.lower()
    if suffix not in DEMUXERS:
        expected = ", ".join(DEMUXERS)
        raise SampleError("corrupt video", f"video {name}: expected one of {expected}")
    file = VideoFile(name, DEMUXERS[suffix], data, max_pixels)
    with file.film("read") as (container, stream):
        frame_rate = float(stream.average_rate or 0)
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / av.time_base
            if file.demuxer == "matroska":  # which counts from 0, not from its first frame
                seconds -= float((stream.start_time or 0) * stream.time_base)
        says_both = 0 < frame_rate <= FASTEST and 0 < seconds <= LONGEST
        if not says_both or frame_rate * seconds < 1 / 2:  # less than a frame in the whole film
            frame_rate, seconds = _measured(container, stream)
    return Video(name, frame_rate, seconds, file)


def _measured(container, stream) -> tuple[float, float]:
    """Frames a second and seconds of a film whose header does not say them, as browsers record."""
    times = packet_times(container, stream)
    span = float((times[-1] - times[0]) * stream.time_base)  # without the last frame
    length = span / (len(times) - 1) if span else 1 / USUAL_RATE
    return 1 / length, span + length


def evenly(seconds: float, frames_per_second: float, max_frames: int) -> list[float]:
    """Times of the frames to show of a video: every `1 / frames_per_second` s from its start.

    If that is more than `max_frames`, so many spread evenly over the whole video.
    """
    count = max(int(seconds * frames_per_second + EARLY), 1)
    if count <= max_frames:
        return [number / frames_per_second for number in range(count)]
    return [number * seconds / max_frames for number in range(max_frames)]
