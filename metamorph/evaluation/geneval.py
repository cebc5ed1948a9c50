"""Prompts in the manner of GenEval (Ghosh et al., arXiv 2310.11513) about toy scenes.

Each says little, and only what it says is judged: a single object, its colour, how many there are,
and where. GenEval itself asks for photographs and judges by a detector; here an exact checker reads
the drawing. Its two different objects are in `two_objects.py`, for the shapes of a scene are equal.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import replace

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.toy.scenes import (
    COLOURS,
    COUNT_PLACES,
    COUNT_WORDS,
    PLACES,
    SHAPES,
    Scene,
    plural,
    render,
)
from metamorph.data.toy.tasks import Task
from metamorph.tokens import IMAGE_PLACEHOLDER

SEED = 12345
JUDGED = {  # kind of prompt: attributes that it says
    "single object": ("shape", "count"),
    "colours": ("colour", "shape", "count"),
    "counting": ("shape", "count"),
    "position": ("shape", "place", "count"),
}


def geneval_tasks(asked: str, count: int) -> list[Task]:
    """Different prompts of one of the kinds in `JUDGED`, at most `count`, for there are few."""
    scenes = list(_scenes(asked))
    chosen = random.Random(f"{asked} {SEED}").sample(scenes, min(count, len(scenes)))
    return [_task(scene, asked) for scene in chosen]


def _scenes(asked: str) -> Iterator[Scene]:
    """One for each prompt. What the prompt does not say is arbitrary."""
    for shape in SHAPES:
        plain = Scene(shape, "red", "large", "center")
        match asked:
            case "single object":
                yield plain
            case "colours":
                yield from (replace(plain, colour=colour) for colour in COLOURS)
            case "counting":
                yield from (replace(plain, size="small", count=count) for count in COUNT_PLACES)
            case "position":
                yield from (replace(plain, place=place) for place in PLACES)
            case _:
                raise ValueError(f"asked must be one of {[*JUDGED]}, got {asked!r}")


def _task(scene: Scene, asked: str) -> Task:
    prompt = f"Generate an image of {_words(scene, JUDGED[asked])}."
    turns = Turn(USER, prompt), Turn(ASSISTANT, IMAGE_PLACEHOLDER)
    return Task(asked, Sample(f"geneval {prompt}", turns, (render(scene),)), scene)


def _words(scene: Scene, said: Collection[str]) -> str:
    several = scene.count > 1
    words = [COUNT_WORDS[scene.count] if several else "a"]
    words += [scene.colour] if "colour" in said else []
    words.append(plural(scene.shape) if several else scene.shape)
    words += [f"at the {scene.place}"] if "place" in said else []
    return " ".join(words)
