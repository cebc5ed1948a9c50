"""Visual thinking: the response shows the part of the image that matters, then answers.

Three written forms: `box` beside a conversation of two turns; Visual-CoT as published, where a
second image name ends in `###[x1, y1, x2, y2]`; VStar, whose `target_instances` are marked in a
copy of the whole image.
"""

import json
import random
from typing import Any

from metamorph.data.conversation import Sample
from metamorph.data.families.pictures import apart_from_system, ask, sample_of
from metamorph.data.formats.records import Record, checked_text
from metamorph.data.images import Box, Crop, Marked, Picture
from metamorph.errors import shown

BOX_MARK = "###"
LARGEST = 1e300  # of a number of a box; two of them can be added
MOST_TARGETS = 200  # boxes that are drawn into one picture
BOX_REQUEST = "Please provide the bounding box"  # of Visual-CoT; we answer with the crop instead
HINTS = (
    "Look closely before you answer.",
    "Show the part that matters, then answer.",
    "Zoom in first.",
    "Think with an image before you answer.",
    "",
)
LEADS = (
    "Let me look closer: <image>",
    "This is the part that matters: <image>",
    "I will think about it visually. <image>",
    "<image>",
)


def boxes(record: Record, seed: int) -> Sample:
    """`image`, `conversations` and a box in one of the three forms; see the module."""
    system, turns = apart_from_system(record.turns())
    if len(turns) < 2:
        raise ValueError(f"conversations: expected a question and an answer, got {len(turns)}")
    image, answer = _pictures(record)
    question = turns[0].text.replace("<image>", "").partition(BOX_REQUEST)[0].strip()
    rng = random.Random(f"{seed} boxes {record.id}")
    hint, lead = rng.choice(HINTS), rng.choice(LEADS)
    prompt = f"<image>{question} {hint}".rstrip()
    turns = (*system, *ask(prompt, f"{lead} {turns[-1].text}"))
    return sample_of(record, turns, [image, answer])


def _pictures(record: Record) -> tuple[Picture, Picture]:
    """The whole image and what the response shows of it."""
    targets = record.get("target_instances")
    if targets is not None:
        image = record.picture("image")
        if not isinstance(targets, list) or len(targets) > MOST_TARGETS:
            problem = f"expected a list of {MOST_TARGETS} or fewer, got {shown(targets)}"
            raise ValueError(f"target_instances: {problem}")
        return image, Marked(image, tuple(map(_target, targets)))
    if record.get("box") is not None:
        image = record.picture("image")
        return image, Crop(image, _numbers(record.get("box")))
    value = record.get("image")
    if not isinstance(value, list) or len(value) != 2 or BOX_MARK not in str(value[1]):
        raise ValueError("expected a 'box', 'target_instances', or a second image name with ###[]")
    image = record.files.picture(value[0])
    return image, Crop(image, _box_of_name(value[1]))


def _target(written: Any) -> tuple[str, Box]:
    """The name of an object and where it is."""
    if not isinstance(written, dict):
        problem = f"expected objects with `name` and `bbox`, got {shown(written)}"
        raise ValueError(f"target_instances: {problem}")
    return checked_text("name", written.get("name")), _corners(written.get("bbox"))


def _box_of_name(name: Any) -> Box:
    """The box of `dog.jpg###[10, 10, 50, 40]`."""
    text = checked_text("image", name).partition(BOX_MARK)[2]
    try:
        return _numbers(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"image: expected ###[x1, y1, x2, y2], got {shown(name)}") from error


def _numbers(value: Any) -> Box:
    """Four finite numbers, else `ValueError`."""
    is_box = isinstance(value, list) and len(value) == 4
    if not is_box or not all(type(s) in (int, float) and abs(s) <= LARGEST for s in value):
        raise ValueError(f"box: expected four numbers, got {shown(value)}")
    left, top, right, bottom = map(float, value)
    return left, top, right, bottom


def _corners(value: Any) -> Box:
    """`[x, y, width, height]` as corners."""
    x, y, width, height = _numbers(value)
    return x, y, x + width, y + height
