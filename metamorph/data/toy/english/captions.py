"""Captions of scenes in English: the order of words, and words for each attribute.

`{where}` is a place within a sentence ("in the top left corner"), `{label}` one alone ("top left").
"""

import random
from collections.abc import Sequence

from metamorph.data.toy.english.words import (
    CENTRE_LABELS,
    CENTRE_PHRASES,
    COLOUR_WORDS,
    CORNER_LABELS,
    CORNER_PHRASES,
    COUNTS,
    SHAPE_WORDS,
    SIZE_WORDS,
    places,
    plural,
)
from metamorph.data.toy.scenes import Scene

PLAIN_SHARE = 0.5  # of words: the first one of its table

ONE = {  # captions of one shape
    "train": (
        "a {size} {colour} {shape} {where}",
        "a {size}, {colour} {shape} {where}",
        "a {colour} {shape}, {size}, {where}",
        "a {colour} {shape}, {size}, {label}",
        "a {size} {shape} in {colour} {where}",
        "one {size} {colour} {shape} {where}",
        "a {shape} {where}, {size} and {colour}",
        "a {shape} that is {size} and {colour}, {where}",
        "a single {size} {colour} {shape} placed {where}",
        "a {colour} {shape} of {size} size {where}",
        "{size} {colour} {shape}, {label}",
        "a {size} {shape}, coloured {colour}, {where}",
        "{where} a {size} {colour} {shape}",
    ),
    "held_out": (
        "a {colour} {shape}, {size} in size, {where}",
        "a {shape}, {colour} and {size}, located {where}",
        "something {size} and {colour}, namely a {shape}, {where}",
        "a {size} {shape} {where}, painted {colour}",
        "{label}: {colour}, {size}, {shape}",
        "a {shape} whose colour is {colour} and whose size is {size}, {where}",
        "{where}, one {shape}, {colour}, {size}",
    ),
}
SEVERAL = {  # captions of several equal shapes
    "train": (
        "{count} {size} {colour} {shapes}",
        "{count} {size}, {colour} {shapes}",
        "{count} {colour} {shapes}, {size}",
        "{count} {size} {shapes} in {colour}",
        "a group of {count} {size} {colour} {shapes}",
        "{count} {shapes}, {size} and {colour}",
        "{count} {size} {shapes}, all {colour}",
        "exactly {count} {size} {colour} {shapes}",
        "{count} {shapes} that are {size} and {colour}",
    ),
    "held_out": (
        "{count} {size} {shapes}, every one of them {colour}",
        "a set of {count} {size} {colour} {shapes}",
        "{shapes}, {count} of them, {size} and {colour}",
        "{colour}, {size} {shapes}, {count} in number",
        "{count} equal {shapes}, {colour} ones of {size} size",
    ),
}


def say(rng: random.Random, options: Sequence[str]) -> str:
    """One of them, the first for half of the time."""
    return options[0] if rng.random() < PLAIN_SHARE else rng.choice(options)


def options(scene: Scene, words: str) -> dict[str, tuple[str, ...]]:
    """The words of one set, "train" or "new", for every slot of a scene's captions."""
    shapes = SHAPE_WORDS[words][scene.shape]
    slots = {
        "colour": COLOUR_WORDS[words][scene.colour],
        "size": SIZE_WORDS[words][scene.size],
        "shape": shapes,
    }
    if scene.count > 1:
        return slots | {"shapes": tuple(map(plural, shapes)), "count": COUNTS[scene.count]}
    return slots | {
        "where": places(scene.place, CORNER_PHRASES, CENTRE_PHRASES, words),
        "label": places(scene.place, CORNER_LABELS, CENTRE_LABELS, words),
    }


def english_caption(rng: random.Random, scene: Scene, phrasing: str, words: str) -> str:
    """A caption of a `phrasing`, "train" or "held_out", in one set of `words`. Articles and
    spelling are still to be put right."""
    template = rng.choice((ONE if scene.count == 1 else SEVERAL)[phrasing])
    slots = {name: say(rng, choice) for name, choice in options(scene, words).items()}
    return template.format(**slots)
