"""Tasks of the toy world that no training has shown, the same ones for every evaluation."""

import itertools
from collections.abc import Callable

from metamorph.data.toy.scenes import COLOURS, PLACES, SHAPES, Scene, is_held_out
from metamorph.data.toy.tasks import Task
from metamorph.evaluation.checker import ATTRIBUTES
from metamorph.evaluation.task_source import TOY, TaskSource
from metamorph.tokens import IMAGE_PLACEHOLDER

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


def tasks_of(
    kind: str,
    count: int,
    split: str = "held_out",
    wanted: Callable[[Task], bool] = bool,
    source: TaskSource = TOY,
) -> list[Task]:
    """The first tasks of one kind of the toy world that are wanted."""
    endless = (source.task(kind, index, split) for index in itertools.count())
    return list(itertools.islice(filter(wanted, endless), count))


def caption_tasks(count: int, split: str = "held_out", source: TaskSource = TOY) -> list[Task]:
    """Requests to draw one shape: its colour, size and place are all in the caption."""
    return tasks_of("draw", count, split, lambda task: task.scene.count == 1, source)


def drawing_tasks(
    asked: str, count: int, split: str = "held_out", source: TaskSource = TOY
) -> list[Task]:
    """Tasks of one of the kinds in `JUDGED`, each answered by one picture.

    Other wordings are those of the first captions.
    """
    match asked:
        case "captions":
            return caption_tasks(count, split, source)
        case "counts":
            return tasks_of("draw", count, split, lambda task: task.scene.count > 1, source)
        case "edits":
            return tasks_of("edit", count, split, source=source)
        case "next frames":
            return tasks_of("motion", count, split, _is_drawn, source)
        case _:
            captions = caption_tasks(count, split, source)
            return [source.reworded(task, number) for number, task in enumerate(captions)]


def other_questions(asked: str, count: int, source: TaskSource = TOY) -> list[Task]:
    """Questions beside the plain ones: about motion, or the plain ones in other wordings."""
    if asked == "motion":
        return tasks_of("motion", count, wanted=lambda task: not _is_drawn(task), source=source)
    questions = tasks_of("question", count, source=source)
    return [source.reworded(task, number) for number, task in enumerate(questions)]


def _is_drawn(task: Task) -> bool:
    return task.sample.turns[1].text == IMAGE_PLACEHOLDER


def describe_split() -> str:
    """What is held out, with examples, in words."""
    single = [Scene(s, c, "large", p) for s in SHAPES for c in COLOURS for p in PLACES]
    unseen = [f"{s.colour} {s.shape} at the {s.place}" for s in single if is_held_out(s)]
    return (
        f"{len(unseen)} of {len(single)} combinations of shape, colour and place, such as "
        f"{', '.join(unseen[:4])}"
    )
