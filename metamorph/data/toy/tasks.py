"""Conversations about toy scenes, one function a kind; a sample is a pure function of its seed.

The kinds mirror the paper's data families: questions and captions (image QA), drawing
(generation), edits (image to image), motion (video) and zoom-then-answer (visual thinking).
`text` has no images at all and stands in for the language model's pretraining, and `pair` has two
different shapes, to be drawn or asked about. What is said in each is a `Wording`'s to say.
"""

import random
from dataclasses import dataclass, replace

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.toy.pairs import Pair, PairQuestion, random_pair, render_pair
from metamorph.data.toy.scenes import (
    COLOURS,
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
from metamorph.data.toy.wording import PLAIN, QUESTIONS, REPEAT, Wording

CORNERS = tuple(place for place in PLACES if place != "center")


@dataclass(frozen=True)
class Task:
    """A sample with what an exact checker needs to know of its answer."""

    kind: str
    sample: Sample
    scene: Scene  # the scene that a drawn answer must show, or that the question is about
    attribute: str = ""  # of questions: the key of QUESTIONS
    before: Scene | None = None  # what there was before an edit or a move
    pair: Pair | None = None  # of two shapes, of which `scene` is the one that a question is about

    @property
    def combination(self) -> str:
        """That of the scene that was drawn from the split. The held-out ones are few, and tasks of
        one combination are alike in more than their words."""
        return (self.pair or self.before or self.scene).combination


def _turns(prompt: str, response: str) -> tuple[Turn, Turn]:
    return Turn(USER, prompt), Turn(ASSISTANT, response)


def question(rng: random.Random, split: str, wording: Wording) -> Task:
    attribute = rng.choice(tuple(QUESTIONS))
    scene = (random_count_scene if attribute == "count" else random_scene)(rng, split)
    request = wording.question(rng, attribute)
    turns = _turns(f"<image>{request}", wording.answer(attribute, scene))
    return Task("question", Sample("", turns, (render(scene),)), scene, attribute)


def describe(rng: random.Random, split: str, wording: Wording) -> Task:
    scene = rng.choice((random_scene, random_count_scene))(rng, split)
    turns = _turns(f"<image>{wording.description_request(rng)}", caption(scene))
    return Task("describe", Sample("", turns, (render(scene),)), scene)


def draw(rng: random.Random, split: str, wording: Wording) -> Task:
    scene = random_count_scene(rng, split) if rng.random() < 0.2 else random_scene(rng, split)
    turns = _turns(wording.drawing_request(rng, scene), "<image>")
    return Task("draw", Sample("", turns, (render(scene),)), scene)


def edit(rng: random.Random, split: str, wording: Wording) -> Task:
    before = random_scene(rng, split)
    recoloured = [replace(before, colour=c) for c in COLOURS if c != before.colour]
    after = rng.choice([scene for scene in recoloured if not is_held_out(scene)])
    turns = _turns(f"<image>{wording.edit_request(rng, before, after)}", "<image>")
    return Task("edit", Sample("", turns, (render(before), render(after))), after, before=before)


def motion(rng: random.Random, split: str, wording: Wording) -> Task:
    before = random_scene(rng, split, CORNERS)
    moves = [(d, replace(before, place=to)) for (p, d), to in MOVES.items() if p == before.place]
    direction, after = rng.choice([move for move in moves if not is_held_out(move[1])])
    images = (render(before), render(after))
    if rng.random() < 0.5:
        turns = _turns(f"<image><image>{wording.direction_question(rng, before)}", direction)
    else:
        request = wording.next_frame_request(rng, before, direction)
        turns = _turns(f"<image>{request}", "<image>")
    return Task("motion", Sample("", turns, images), after, before=before)


def zoom_then_answer(rng: random.Random, split: str, wording: Wording) -> Task:
    scene = random_scene(rng, split)
    attribute = rng.choice(("colour", "shape"))
    request = wording.zoom_request(rng, attribute)
    turns = _turns(f"<image>{request}", f"<image>{wording.answer(attribute, scene)}")
    return Task("zoom", Sample("", turns, (render(scene), zoom(scene))), scene, attribute)


def text(rng: random.Random, split: str, wording: Wording) -> Task:
    attribute = rng.choice((*QUESTIONS, REPEAT))
    scene = (random_count_scene if attribute == "count" else random_scene)(rng, split)
    answer = caption(scene) if attribute == REPEAT else wording.answer(attribute, scene)
    turns = _turns(wording.text_request(rng, scene, attribute), answer)
    return Task("text", Sample("", turns), scene, attribute)


def pair(rng: random.Random, split: str, wording: Wording) -> Task:
    shown, about = random_pair(rng, split), PairQuestion.random(rng)
    item = about.item(shown)
    scene = Scene(item.shape, item.colour, "large", "center")
    if rng.random() < 0.5:
        turns = _turns(wording.pair_request(rng, shown), "<image>")
        return Task("pair", Sample("", turns, (render_pair(shown),)), scene, pair=shown)
    turns = _turns(f"<image>{wording.pair_question(rng, shown, about)}", about.answer(shown))
    sample = Sample("", turns, (render_pair(shown),))
    return Task("pair", sample, scene, about.attribute, pair=shown)


KINDS = {
    "question": question,
    "describe": describe,
    "draw": draw,
    "edit": edit,
    "motion": motion,
    "zoom": zoom_then_answer,
    "text": text,
}
# Beside these, what only `data.kinds` asks for: the toy tokenizer, studies and default weights know
# nothing of it, so that what they make of a seed stays the same.
ALL_KINDS = KINDS | {"pair": pair}
DEFAULT_WEIGHTS = {
    "question": 0.28, "draw": 0.40, "describe": 0.04, "edit": 0.16, "motion": 0.08, "zoom": 0.04,
}  # fmt: skip


def make_task(
    seed: int,
    index: int,
    split: str = "train",
    weights: dict[str, float] | None = None,
    wording: Wording = PLAIN,
) -> Task:
    """Task number `index` of a split: the same arguments give the same text and pixels, another
    `wording` the same pixels.

    `weights` maps kinds to relative frequencies. Raises `ValueError` for an unknown kind.
    """
    weights = weights or DEFAULT_WEIGHTS
    unknown = sorted(set(weights) - set(ALL_KINDS))
    if unknown:
        raise ValueError(f"unknown kinds {unknown}, expected some of {sorted(ALL_KINDS)}")
    rng = random.Random(f"toy scenes {seed} {split} {index}")
    kind = rng.choices(list(weights), list(weights.values()))[0]
    task = ALL_KINDS[kind](rng, split, wording)
    name = f"{wording.name}-{split}-{seed}-{index}-{kind}"
    return replace(task, sample=replace(task.sample, id=name))
