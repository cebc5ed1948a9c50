"""Tasks of the toy world that no training has shown, the same ones for every evaluation."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

from metamorph.data.conversation import USER, Turn
from metamorph.data.toy.scenes import COLOURS, PLACES, SHAPES, Scene, caption, is_held_out
from metamorph.data.toy.tasks import Task, make_task
from metamorph.evaluation.checker import ATTRIBUTES
from metamorph.tokens import IMAGE_PLACEHOLDER

SEED = 12345  # training uses other ones

# What is asked to be drawn, and by which attributes a drawing is judged. A caption of several
# shapes says no place; all other pictures show one shape.
SEVERAL = ("colour", "shape", "size", "count")
JUDGED = {
    "captions": ATTRIBUTES,
    "counts": SEVERAL,
    "edits": ATTRIBUTES,
    "next frames": ATTRIBUTES,
    "other wordings": ATTRIBUTES,
}
# Captions as training never words them: other verbs, no final stop, other spellings.
WORDINGS = (
    "Draw {}.",
    "Generate an image of {}",
    "generate a picture of {british}.",
    "Please show me {}",
    "Generate an image of {british}.",
)
# Questions likewise.
OTHER_QUESTIONS = {
    "colour": "What color is the shape?",
    "shape": "Which shape is it?",
    "size": "Is it small or large?",
    "place": "Where is it?",
    "count": "How many shapes do you see?",
}


def tasks_of(
    kind: str, count: int, split: str = "held_out", wanted: Callable[[Task], bool] = bool
) -> list[Task]:
    """The first tasks of one kind of the toy world that are wanted."""
    endless = (make_task(SEED, index, split, {kind: 1.0}) for index in itertools.count())
    return list(itertools.islice(filter(wanted, endless), count))


def caption_tasks(count: int, split: str = "held_out") -> list[Task]:
    """Requests to draw one shape: its colour, size and place are all in the caption."""
    return tasks_of("draw", count, split, lambda task: task.scene.count == 1)


def drawing_tasks(asked: str, count: int, split: str = "held_out") -> list[Task]:
    """Tasks of one of the kinds in `JUDGED`, each answered by one picture.

    Other wordings are those of the first captions.
    """
    match asked:
        case "captions":
            return caption_tasks(count, split)
        case "counts":
            return tasks_of("draw", count, split, lambda task: task.scene.count > 1)
        case "edits":
            return tasks_of("edit", count, split)
        case "next frames":
            return tasks_of("motion", count, split, _is_drawn)
        case _:
            captions = caption_tasks(count, split)
            return [reworded(task, number) for number, task in enumerate(captions)]


def other_questions(asked: str, count: int) -> list[Task]:
    """Questions beside the plain ones: about motion, or the plain ones in other wordings."""
    if asked == "motion":
        return tasks_of("motion", count, wanted=lambda task: not _is_drawn(task))
    return [
        _with_request(task, IMAGE_PLACEHOLDER + OTHER_QUESTIONS[task.attribute])
        for task in tasks_of("question", count)
    ]


def _is_drawn(task: Task) -> bool:
    return task.sample.turns[1].text == IMAGE_PLACEHOLDER


def reworded(task: Task, number: int) -> Task:
    """The same picture asked for in another of `WORDINGS`."""
    words = caption(task.scene)
    british = re.sub("(top|bottom) ", r"\1-", words).replace("center", "centre")
    return _with_request(task, WORDINGS[number % len(WORDINGS)].format(words, british=british))


def _with_request(task: Task, text: str) -> Task:
    _, answer = task.sample.turns
    return replace(task, sample=replace(task.sample, turns=(Turn(USER, text), answer)))


def describe_split() -> str:
    """What is held out, with examples, in words."""
    single = [Scene(s, c, "large", p) for s in SHAPES for c in COLOURS for p in PLACES]
    unseen = [f"{s.colour} {s.shape} at the {s.place}" for s in single if is_held_out(s)]
    return (
        f"{len(unseen)} of {len(single)} combinations of shape, colour and place, such as "
        f"{', '.join(unseen[:4])}"
    )
