"""How much of a model is measured, and how."""

from dataclasses import dataclass
from pathlib import Path

from metamorph.evaluation.task_source import TOY, TaskSource
from metamorph.generation.settings import DEFAULT_DRAWING, DrawingSettings


@dataclass(frozen=True)
class Options:
    """`count` is the most samples of a suite. Drawing n of a kind of request is made of noise of
    the seed `seed` + n. `source` words the tasks, but for those that have words of their own;
    `text` is the file that perplexity is measured on (None: tasks of the toy world without
    pictures)."""

    count: int = 100
    seed: int = 0
    drawing: DrawingSettings = DEFAULT_DRAWING
    source: TaskSource = TOY
    text: Path | None = None


DEFAULT = Options()
