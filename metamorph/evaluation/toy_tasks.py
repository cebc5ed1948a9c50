"""Tasks of the toy world that no training has shown, the same ones for every evaluation."""

import itertools
from collections.abc import Callable

from metamorph.data.toy.tasks import Task, make_task

SEED = 12345  # training uses other ones


def tasks_of(
    kind: str, count: int, split: str = "held_out", wanted: Callable[[Task], bool] = bool
) -> list[Task]:
    """The first tasks of one kind of the toy world that are wanted."""
    endless = (make_task(SEED, index, split, {kind: 1.0}) for index in itertools.count())
    return list(itertools.islice(filter(wanted, endless), count))


def caption_tasks(count: int, split: str = "held_out") -> list[Task]:
    """Requests to draw one shape: its colour, size and place are all in the caption."""
    return tasks_of("draw", count, split, lambda task: task.scene.count == 1)
