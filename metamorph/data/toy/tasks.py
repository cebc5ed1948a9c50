"""Conversations about toy scenes, one function a kind; a sample is a pure function of its seed.

The kinds mirror the paper's data families: questions and captions (image QA), drawing
(generation), edits (image to image), motion (video) and zoom-then-answer (visual thinking).
`text` has no images at all and stands in for the language model's pretraining.
"""

import random
from dataclasses import dataclass, replace

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.toy.scenes import (
    COLOURS,
    COUNT_WORDS,
    MOVES,
    PLACES,
    Scene,
    caption,
    is_held_out,
    random_count_scene,
    random_scene,
    render,
    zoom,
)

QUESTIONS = {  # attribute: question about the only shape (count: about all)
    "colour": "What colour is the shape?",
    "shape": "What shape is it?",
    "size": "Is the shape small or large?",
    "place": "Where is the shape?",
    "count": "How many shapes are there?",
}
CORNERS = tuple(place for place in PLACES if place != "center")


@dataclass(frozen=True)
class Task:
    """A sample with what an exact checker needs to know of its answer."""

    kind: str
    sample: Sample
    scene: Scene  # the scene that a drawn answer must show, or that the question is about
    attribute: str = ""  # of questions: the key of QUESTIONS


def answer_to(attribute: str, scene: Scene) -> str:
    """The one right answer to `QUESTIONS[attribute]`."""
    if attribute == "count":
        return COUNT_WORDS[scene.count]
    if attribute == "place":
        return f"at the {scene.place}"
    return getattr(scene, attribute)


def _turns(prompt: str, response: str) -> tuple[Turn, Turn]:
    return Turn(USER, prompt), Turn(ASSISTANT, response)


def question(rng: random.Random, split: str) -> Task:
    attribute = rng.choice(tuple(QUESTIONS))
    scene = (random_count_scene if attribute == "count" else random_scene)(rng, split)
    turns = _turns(f"<image>{QUESTIONS[attribute]}", answer_to(attribute, scene))
    return Task("question", Sample("", turns, (render(scene),)), scene, attribute)


def describe(rng: random.Random, split: str) -> Task:
    scene = rng.choice((random_scene, random_count_scene))(rng, split)
    turns = _turns("<image>Describe the image.", caption(scene))
    return Task("describe", Sample("", turns, (render(scene),)), scene)


def draw(rng: random.Random, split: str) -> Task:
    scene = random_count_scene(rng, split) if rng.random() < 0.2 else random_scene(rng, split)
    turns = _turns(f"Generate an image of {caption(scene)}.", "<image>")
    return Task("draw", Sample("", turns, (render(scene),)), scene)


def edit(rng: random.Random, split: str) -> Task:
    before = random_scene(rng, split)
    recoloured = [replace(before, colour=c) for c in COLOURS if c != before.colour]
    after = rng.choice([scene for scene in recoloured if not is_held_out(scene)])
    turns = _turns(f"<image>Make the {before.shape} {after.colour}.", "<image>")
    return Task("edit", Sample("", turns, (render(before), render(after))), after)


def motion(rng: random.Random, split: str) -> Task:
    before = random_scene(rng, split, CORNERS)
    moves = [(d, replace(before, place=to)) for (p, d), to in MOVES.items() if p == before.place]
    direction, after = rng.choice([move for move in moves if not is_held_out(move[1])])
    images = (render(before), render(after))
    if rng.random() < 0.5:
        turns = _turns(f"<image><image>Which way did the {before.shape} move?", direction)
    else:
        prompt = f"<image>The {before.shape} moves {direction}. Show the next frame."
        turns = _turns(prompt, "<image>")
    return Task("motion", Sample("", turns, images), after)


def zoom_then_answer(rng: random.Random, split: str) -> Task:
    scene = random_scene(rng, split)
    attribute = rng.choice(("colour", "shape"))
    turns = _turns(
        f"<image>Zoom in, then answer. {QUESTIONS[attribute]}",
        f"<image>{answer_to(attribute, scene)}",
    )
    return Task("zoom", Sample("", turns, (render(scene), zoom(scene))), scene, attribute)


def text(rng: random.Random, split: str) -> Task:
    attribute = rng.choice((*QUESTIONS, "repeat"))
    scene = (random_count_scene if attribute == "count" else random_scene)(rng, split)
    words = caption(scene)
    if attribute == "repeat":
        turns = _turns(f"Say: {words}.", words)
    else:
        prompt = f"There is an image of {words}. {QUESTIONS[attribute]}"
        turns = _turns(prompt, answer_to(attribute, scene))
    return Task("text", Sample("", turns), scene, attribute)


KINDS = {
    "question": question,
    "describe": describe,
    "draw": draw,
    "edit": edit,
    "motion": motion,
    "zoom": zoom_then_answer,
    "text": text,
}
DEFAULT_WEIGHTS = {
    "question": 0.28, "draw": 0.40, "describe": 0.04, "edit": 0.16, "motion": 0.08, "zoom": 0.04,
}  # fmt: skip


def make_task(
    seed: int, index: int, split: str = "train", weights: dict[str, float] | None = None
) -> Task:
    """Task number `index` of a split: the same arguments give the same text and pixels.

    `weights` maps kinds to relative frequencies. Raises `ValueError` for an unknown kind.
    """
    weights = weights or DEFAULT_WEIGHTS
    unknown = sorted(set(weights) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kinds {unknown}, expected some of {sorted(KINDS)}")
    rng = random.Random(f"toy scenes {seed} {split} {index}")
    kind = rng.choices(list(weights), list(weights.values()))[0]
    task = KINDS[kind](rng, split)
    return replace(task, sample=replace(task.sample, id=f"toy-{split}-{seed}-{index}-{kind}"))
