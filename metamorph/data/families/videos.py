"""Videos as conversations: questions about frames, and what comes next in them.

Templates and frames of a sample depend on the seed and its id alone.
"""

import random
from dataclasses import dataclass, replace

from metamorph.data.conversation import USER, Sample
from metamorph.data.families.pictures import apart_from_system, ask, sample_of
from metamorph.data.formats.records import Record
from metamorph.data.images import Picture
from metamorph.data.video import FASTEST, SLOWEST, Video, evenly
from metamorph.errors import SampleError, shown

SHORTEST_STEP, LONGEST_STEP = 0.1, 10.0  # seconds between the frames of a pure video
PLACEHOLDERS = ("<video>\n", "<video>", "<image>\n", "<image>")  # as such data marks its video
# Before the frames of every task but that of telling it.
INTERVAL = "From a video with frames each {} seconds apart: "
NEXT_REQUESTS = {
    1: ("Show the next frame.", "What happens next? Show it.", "Predict the next frame."),
    2: ("Show the next two frames.", "Predict the next two frames."),
    3: ("Show the next three frames.", "Predict the next three frames."),
}
FOLLOWING_REQUESTS = (
    "This is the first frame. Show all frames that follow.",
    "The video begins so. Show how it goes on, frame by frame.",
)
SPLIT_REQUESTS = (
    "This is the first half. Show the second half.",
    "Here the video was cut in two. Show its second part.",
)
MIDDLE_REQUESTS = (
    "These are the first and the last frame. Show what happened in between.",
    "Show all frames between these two.",
)
ALTERNATING_REQUESTS = (
    "Every second frame is missing. Show the missing ones.",
    "Between each two of these one frame was left out. Show those frames.",
)
REVERSE_REQUESTS = (
    "These frames run backwards. Show them in the right order.",
    "The video is played in reverse. Show it forwards.",
)
REORDER_REQUESTS = (
    "These frames are in no order. Show them in the right order.",
    "Put these shuffled frames into the order in which they happened.",
)
STEP_REQUESTS = (
    "How much time passes between one frame and the next?",
    "How far apart in time are these frames?",
)


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen: `data.frames_per_second` and `data.max_frames`."""

    frames_per_second: float
    max_frames: int


def video_questions(record: Record, sampling: Sampling) -> Sample:
    """`video` and `conversations`: frames at a steady rate stand before the first question."""
    video = _open(record, sampling)
    times = evenly(video.seconds, sampling.frames_per_second, sampling.max_frames)
    system, (first, *others) = apart_from_system(record.turns())
    if first.role != USER:
        raise ValueError(f"conversations: expected a human turn first, got one of {first.role}")
    text = first.text
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, "")
    turns = [*system, replace(first, text="<image>" * len(times) + text.lstrip()), *others]
    return sample_of(record, turns, video.frames(times))


def video_frames(record: Record, sampling: Sampling, seed: int) -> Sample:
    """`video` alone: frames at a random step, and a task about them.

    The tasks are those of the paper: to draw the next one to three frames, all that follow the
    first, the second half, those between the first and the last, every second one, or all in
    the right order where they come backwards or shuffled; or to say how far apart they are, which
    the other prompts state. Two frames are always a first and its next.
    """
    video = _open(record, sampling)
    rng = random.Random(f"{seed} video {record.id}")
    least = max(2 / video.frame_rate, SHORTEST_STEP)
    step = rng.uniform(least, max(min(LONGEST_STEP, video.seconds / 2), least))
    count = min(int(video.seconds / step), sampling.max_frames)
    if count < 2:
        message = f"video {video.name}: {video.seconds:.2f} s are too short for two frames"
        raise SampleError("video too short", message)
    frames = video.frames([number * step for number in range(count)])
    task = _next if count == 2 else rng.choice(TASKS)
    given, drawn, requests = task(frames, rng)
    prompt = "<image>" * len(given) + rng.choice(requests)
    if not drawn:
        return sample_of(record, ask(prompt, f"About {_seconds(step)} seconds."), given)
    interval = INTERVAL.format(_seconds(step))
    return sample_of(record, ask(interval + prompt, "<image>" * len(drawn)), (*given, *drawn))


def _open(record: Record, sampling: Sampling) -> Video:
    """`fps` says how fast a folder of frames runs; without it, all its frames are taken."""
    rate = record.get("fps")
    if rate is None:
        rate = sampling.frames_per_second
    if type(rate) not in (int, float) or not SLOWEST <= rate <= FASTEST:
        raise ValueError(f"fps: expected frames a second, got {shown(rate)}")
    return record.files.video(record.get("video"), rate)


def _seconds(step: float) -> str:
    """Two digits of it, so that what is said is within 5 % of what is true."""
    return str(float(f"{step:.2g}"))


# Each task takes frames in order, and gives those that are shown, those that are to be drawn, and
# the ways to ask for them.
Frames = tuple[Picture, ...]
Task = tuple[Frames, Frames, tuple[str, ...]]


def _next(frames: Frames, rng: random.Random) -> Task:
    drawn = rng.randint(1, min(3, len(frames) - 1))
    return frames[:-drawn], frames[-drawn:], NEXT_REQUESTS[drawn]


def _following(frames: Frames, rng: random.Random) -> Task:
    return frames[:1], frames[1:], FOLLOWING_REQUESTS


def _split(frames: Frames, rng: random.Random) -> Task:
    half = -(-len(frames) // 2)
    return frames[:half], frames[half:], SPLIT_REQUESTS


def _middle(frames: Frames, rng: random.Random) -> Task:
    return (frames[0], frames[-1]), frames[1:-1], MIDDLE_REQUESTS


def _alternating(frames: Frames, rng: random.Random) -> Task:
    frames = frames[: len(frames) - 1 + len(frames) % 2]  # an odd number: the last one is given
    return frames[::2], frames[1::2], ALTERNATING_REQUESTS


def _reverse(frames: Frames, rng: random.Random) -> Task:
    frames = _half_of(frames)
    return frames[::-1], frames, REVERSE_REQUESTS


def _reorder(frames: Frames, rng: random.Random) -> Task:
    frames = _half_of(frames)
    order = [*range(len(frames))]
    while order == sorted(order):
        rng.shuffle(order)
    return tuple(frames[place] for place in order), frames, REORDER_REQUESTS


def _half_of(frames: Frames) -> Frames:
    """The first half, of a task in which every frame appears twice."""
    return frames[: max(len(frames) // 2, 2)]


def _step(frames: Frames, rng: random.Random) -> Task:
    return frames, (), STEP_REQUESTS


TASKS = (_next, _following, _split, _middle, _alternating, _reverse, _reorder, _step)
