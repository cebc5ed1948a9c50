"""Videos as conversations: questions about frames, and what comes next in them.

Templates and frames of a sample depend on the seed and its id alone.
"""

import random
from dataclasses import dataclass, replace

from metamorph.data.conversation import USER, Sample
from metamorph.data.families.pictures import ask, sample_of
from metamorph.data.formats.records import Record
from metamorph.data.images import shorten
from metamorph.data.video import Video, evenly
from metamorph.errors import SampleError

SHORTEST_STEP, LONGEST_STEP = 0.1, 10.0  # seconds between the frames of a pure video
PLACEHOLDERS = ("<video>\n", "<video>", "<image>\n", "<image>")  # as such data marks its video
NEXT_PROMPTS = {
    1: ("Show the next frame.", "What happens next? Show it.", "Predict the next frame."),
    2: ("Show the next two frames.", "Predict the next two frames."),
    3: ("Show the next three frames.", "Predict the next three frames."),
}
MIDDLE_PROMPTS = (
    "These are the first and the last frame. Show what happened in between.",
    "Draw the frames between these two.",
)
REVERSE_PROMPTS = (
    "These frames run backwards. Show them in the right order.",
    "Put these frames into the order in which they happened.",
)
STEP_PROMPTS = (
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
    first, *others = record.turns()
    if first.role != USER:
        raise ValueError(f"conversations: expected a human turn first, got one of {first.role}")
    text = first.text
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, "")
    turns = [replace(first, text="<image>" * len(times) + text.lstrip()), *others]
    return sample_of(record, turns, video.frames(times))


def video_frames(record: Record, sampling: Sampling, seed: int) -> Sample:
    """`video` alone: frames at a random step, and a task about them.

    The tasks: draw the next one to three frames, those in between, or the right order of frames
    that run backwards; or say how far apart they are. Two frames are always a first and its next.
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
    if count == 2:
        return _next(record, frames, rng, step)
    task = rng.choice((_next, _next, _middle, _reverse, _step))
    return task(record, frames, rng, step)


def _open(record: Record, sampling: Sampling) -> Video:
    """`fps` says how fast a folder of frames runs; without it, all its frames are taken."""
    rate = record.get("fps")
    if rate is None:
        rate = sampling.frames_per_second
    if type(rate) not in (int, float) or not 0 < rate <= 1000:
        raise ValueError(f"fps: expected frames a second, got {shorten(repr(rate))}")
    return record.files.video(record.get("video"), rate)


def _next(record: Record, frames, rng: random.Random, step: float) -> Sample:
    drawn = rng.randint(1, min(3, len(frames) - 1))
    prompt = "<image>" * (len(frames) - drawn) + rng.choice(NEXT_PROMPTS[drawn])
    return sample_of(record, ask(prompt, "<image>" * drawn), frames)


def _middle(record: Record, frames, rng: random.Random, step: float) -> Sample:
    prompt = "<image><image>" + rng.choice(MIDDLE_PROMPTS)
    order = (frames[0], frames[-1], *frames[1:-1])
    return sample_of(record, ask(prompt, "<image>" * (len(frames) - 2)), order)


def _reverse(record: Record, frames, rng: random.Random, step: float) -> Sample:
    frames = frames[: max(len(frames) // 2, 2)]  # all of them appear twice
    prompt = "<image>" * len(frames) + rng.choice(REVERSE_PROMPTS)
    return sample_of(record, ask(prompt, "<image>" * len(frames)), (*frames[::-1], *frames))


def _step(record: Record, frames, rng: random.Random, step: float) -> Sample:
    prompt = "<image>" * len(frames) + rng.choice(STEP_PROMPTS)
    return sample_of(record, ask(prompt, f"About {step:.1f} seconds."), frames)
