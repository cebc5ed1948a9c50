"""Files that a person shows to the model."""

from pathlib import Path

from PIL import Image

from metamorph.config.data_keys import MAX_PIXELS
from metamorph.data.images import open_image, read_file
from metamorph.data.video import evenly, open_video
from metamorph.errors import SampleError, UserError

FRAMES = 8  # of a video
MOST_FRAMES = 1000


def picture_of(path: Path) -> Image.Image:
    """A picture in RGB, as a viewer shows it. Raises `UserError`."""
    try:
        return open_image(path, MAX_PIXELS)
    except SampleError as error:
        raise UserError(str(error)) from error


def frames_of(path: Path, count: int) -> list[Image.Image]:
    """`count` frames of a video at equal distances from its start, all of them if it has fewer.
    Raises `UserError`."""
    try:
        video = open_video(str(path), read_file(path, "video"), MAX_PIXELS)
        times = evenly(video.seconds, video.frame_rate, count)
        return [frame.open() for frame in video.frames(times)]
    except SampleError as error:
        raise UserError(str(error)) from error
