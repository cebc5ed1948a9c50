"""How the tasks of the toy world are put into words; `Plain` has one sentence for each."""

import random
from typing import Protocol

from metamorph.data.toy.pairs import COLOUR, Pair, PairQuestion, pair_caption
from metamorph.data.toy.scenes import COUNT_WORDS, Scene, caption

QUESTIONS = {  # attribute: question about the only shape (count: about all)
    "colour": "What colour is the shape?",
    "shape": "What shape is it?",
    "size": "Is the shape small or large?",
    "place": "Where is the shape?",
    "count": "How many shapes are there?",
}
REPEAT = "repeat"  # in place of an attribute: a caption is to be said again


class Wording(Protocol):
    """What is said in a task, without its images. Requests may differ by what `rng` draws; the
    answer to a question is always the same one of its attribute and scene."""

    name: str  # the beginning of a sample's id

    def question(self, rng: random.Random, attribute: str) -> str: ...

    def answer(self, attribute: str, scene: Scene) -> str: ...

    def description_request(self, rng: random.Random) -> str:
        """Answered by `caption`."""
        ...

    def drawing_request(self, rng: random.Random, scene: Scene) -> str: ...

    def edit_request(self, rng: random.Random, before: Scene, after: Scene) -> str: ...

    def direction_question(self, rng: random.Random, scene: Scene) -> str:
        """Answered by a direction of `MOVES`."""
        ...

    def next_frame_request(self, rng: random.Random, scene: Scene, direction: str) -> str: ...

    def zoom_request(self, rng: random.Random, attribute: str) -> str: ...

    def text_request(self, rng: random.Random, scene: Scene, attribute: str) -> str:
        """A question about a scene in words; for `REPEAT` one that `caption` answers."""
        ...

    def pair_request(self, rng: random.Random, pair: Pair) -> str:
        """Asks for a picture of two shapes."""
        ...

    def pair_question(self, rng: random.Random, pair: Pair, about: PairQuestion) -> str:
        """About a picture of two shapes, answered by `PairQuestion.answer`."""
        ...


class Plain:
    """The few words that the toy world's own language model learns from nothing."""

    name = "toy"

    def question(self, rng: random.Random, attribute: str) -> str:
        return QUESTIONS[attribute]

    def answer(self, attribute: str, scene: Scene) -> str:
        if attribute == "count":
            return COUNT_WORDS[scene.count]
        if attribute == "place":
            return f"at the {scene.place}"
        return getattr(scene, attribute)

    def description_request(self, rng: random.Random) -> str:
        return "Describe the image."

    def drawing_request(self, rng: random.Random, scene: Scene) -> str:
        return f"Generate an image of {caption(scene)}."

    def edit_request(self, rng: random.Random, before: Scene, after: Scene) -> str:
        return f"Make the {before.shape} {after.colour}."

    def direction_question(self, rng: random.Random, scene: Scene) -> str:
        return f"Which way did the {scene.shape} move?"

    def next_frame_request(self, rng: random.Random, scene: Scene, direction: str) -> str:
        return f"The {scene.shape} moves {direction}. Show the next frame."

    def zoom_request(self, rng: random.Random, attribute: str) -> str:
        return f"Zoom in, then answer. {QUESTIONS[attribute]}"

    def text_request(self, rng: random.Random, scene: Scene, attribute: str) -> str:
        if attribute == REPEAT:
            return f"Say: {caption(scene)}."
        return f"There is an image of {caption(scene)}. {QUESTIONS[attribute]}"

    def pair_request(self, rng: random.Random, pair: Pair) -> str:
        return f"Generate an image of {pair_caption(pair)}."

    def pair_question(self, rng: random.Random, pair: Pair, about: PairQuestion) -> str:
        if about.attribute == COLOUR:
            return f"What colour is the {about.item(pair).shape}?"
        return f"What shape is on the {about.side}?"


PLAIN = Plain()
