"""Requests to draw what has to be inferred first: "Draw a square in the colour of grass."

Training never shows any. Whoever draws them right has put knowledge of the language model to use.
Each has two controls: the same request with the answer stated, and with its words scrambled.
"""

import random
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from PIL import Image

from metamorph.data.conversation import ASSISTANT, USER, Sample, Turn
from metamorph.data.toy.english.words import plural
from metamorph.data.toy.scenes import COLOURS, COUNT_WORDS, SHAPES, Scene, is_held_out, render
from metamorph.data.toy.tasks import Task
from metamorph.evaluation.checker import score

Asked = Literal["inferred", "stated", "scrambled"]
SUBJECTS = {  # attribute to infer, kind of knowledge: right value: what it is known of
    ("colour", "colour"): {
        "red": ("blood", "a fire engine", "a ripe tomato", "a strawberry", "a stop sign"),
        "green": ("grass", "a frog", "spinach", "a cucumber", "a fir tree"),
        "blue": ("the sky on a clear day", "the sea", "a blueberry", "a pair of jeans"),
        "yellow": ("a ripe banana", "the sun", "a lemon", "a canary", "a sunflower"),
        "purple": ("an eggplant", "lavender", "an amethyst", "a plum"),
        "black": ("coal", "a crow", "the night sky", "tar"),
    },
    ("shape", "outline"): {
        "circle": ("a coin", "a full moon", "a wheel", "a dinner plate"),
        "square": ("a chessboard", "one face of a die", "a floor tile"),
        "triangle": ("a slice of pizza", "a pyramid seen from the side", "a yield sign"),
        "cross": ("the sign for addition", "the symbol on the flag of Switzerland"),
    },
    ("shape", "geometry"): {
        "circle": ("a shape without any corners", "a shape with a radius"),
        "square": (
            "a shape with one side more than a triangle",
            "a shape with four equal sides",
            "a shape with as many sides as a year has seasons",
        ),
        "triangle": (
            "a shape with three corners",
            "a shape with half as many sides as a hexagon",
            "a shape with one side less than a square",
        ),
    },
    ("count", "number"): {
        "two": ("wheels on a bicycle", "eyes in a face", "days in a weekend", "wings on a bird"),
        "three": ("wheels on a tricycle", "lights in a traffic light", "corners of a triangle"),
        "four": ("wheels on a car", "legs on a dog", "seasons in a year", "sides of a square"),
        "five": ("fingers on a hand", "toes on a foot", "rings on the Olympic flag"),
    },
    ("count", "arithmetic"): {
        "two": ("one plus one", "five minus three", "half of four"),
        "three": ("one plus two", "seven minus four", "half of six"),
        "four": ("three plus one", "ten minus six", "two times two"),
        "five": ("two plus three", "nine minus four", "half of ten"),
    },
}
REQUESTS = {  # by kind of knowledge
    "colour": "Draw a {shape} in the colour of {subject}.",
    "outline": "Draw something {colour} that has the shape of {subject}.",
    "geometry": "Draw {subject}, and make it {colour}.",
    "number": "Draw as many {colour} {shapes} as there are {subject}.",
    "arithmetic": "Draw as many {colour} {shapes} as {subject} makes.",
}
FRAMES = {  # sentences that go on with the right value, for a model that knows it
    "colour": (
        "The color of {subject} is",
        "Question: What is the color of {subject}?\nAnswer:",
        "If you look at {subject}, the color that you see is",
    ),
    "outline": (
        "The shape of {subject} is a",
        "Question: Which shape does {subject} have?\nAnswer: a",
        "If you draw the outline of {subject}, you get a",
    ),
    "geometry": (
        "The name of {subject} is",
        "Question: What do you call {subject}?\nAnswer: a",
        "In geometry, {subject} is called a",
    ),
    "number": (
        "The number of {subject} is",
        "Question: How many {subject} are there?\nAnswer:",
        "If you count the {subject}, you get",
    ),
    "arithmetic": (
        "The result of {subject} is",
        "Question: What is {subject}?\nAnswer:",
        "If you calculate {subject}, you get",
    ),
}
VALUES = {"colour": tuple(COLOURS), "shape": SHAPES, "count": ("two", "three", "four", "five")}
COUNTS = {word: count for count, word in COUNT_WORDS.items()}


@dataclass(frozen=True)
class Puzzle:
    """A picture to draw of which `attribute` is not named. Its combination of values is one that
    training shows."""

    attribute: str  # what has to be inferred: colour, shape or count
    knowledge: str  # a key of REQUESTS
    subject: str
    right: str  # one of VALUES[attribute]
    scene: Scene

    @property
    def judged(self) -> tuple[str, ...]:
        """What a drawing must show of `scene`; nothing else is asked for."""
        several = self.attribute == "count"
        return ("colour", "shape", "count") if several else ("colour", "shape")

    @property
    def frames(self) -> tuple[str, ...]:
        """Beginnings of sentences, to find out whether a model knows the answer."""
        return tuple(frame.format(subject=self.subject) for frame in FRAMES[self.knowledge])

    def request(self, asked: Asked = "inferred") -> str:
        """What is said. Scrambled words are the same ones for every model."""
        shape, colour = self.scene.shape, self.scene.colour
        if asked == "stated":
            if self.scene.count > 1:
                return f"Draw {self.right} {colour} {plural(shape)}."
            return f"Draw a {colour} {shape}."
        said = REQUESTS[self.knowledge].format(
            subject=self.subject, shape=shape, shapes=plural(shape), colour=colour
        )
        if asked == "inferred":
            return said
        ordered = said.lower().rstrip(".").replace(",", "").split()
        words, rng = ordered.copy(), random.Random(said)
        while words == ordered:
            rng.shuffle(words)
        return " ".join(words) + "."

    def task(self, asked: Asked = "inferred") -> Task:
        """The request with one of the right pictures, to be judged by `judged` alone."""
        turns = Turn(USER, self.request(asked)), Turn(ASSISTANT, "<image>")
        name = f"puzzle-{asked}-{self.knowledge}-{self.subject.replace(' ', '-')}"
        sample = Sample(name, turns, (render(self.scene),))
        return Task("puzzle", sample, self.scene, self.attribute)

    def score(self, picture: Image.Image) -> dict[str, bool]:
        """Of each judged attribute whether a picture of 64 x 64 pixels shows it."""
        right = score(picture, self.scene)
        return {name: right[name] for name in self.judged}


def puzzles() -> list[Puzzle]:
    """All of them, in the same order for everyone."""
    stated = cycle([(shape, colour) for colour in COLOURS for shape in SHAPES])
    found = []
    for (attribute, knowledge), subjects in SUBJECTS.items():
        for right, known in subjects.items():
            for subject in known:
                scene = _scene(attribute, right, *next(stated))
                while is_held_out(scene):
                    scene = _scene(attribute, right, *next(stated))
                found.append(Puzzle(attribute, knowledge, subject, right, scene))
    return found


def _scene(attribute: str, right: str, shape: str, colour: str) -> Scene:
    if attribute == "count":
        return Scene(shape, colour, "small", "center", COUNTS[right])
    values = {"shape": shape, "colour": colour, attribute: right}
    return Scene(values["shape"], values["colour"], "large", "center")
