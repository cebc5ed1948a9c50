"""Two different shapes side by side: `a red circle on the left and a blue square on the right`.

No kind of sample shows them unless `data.kinds` asks for `pair`.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from metamorph.data.toy.scenes import (
    COLOURS,
    IMAGE_SIZE,
    JITTER,
    SHAPES,
    SIZES,
    SPLITS,
    SUPERSAMPLING,
    draw_shape,
)

SIDES = {"left": (17, 32), "right": (47, 32)}  # centre (x, y), pixels
HALF = SIZES["large"]  # of a side of each shape, pixels: neither reaches the middle
SHAPE, COLOUR = "shape", "colour"  # what a question asks for


@dataclass(frozen=True)
class Item:
    """One of the two shapes."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Pair:
    """Two large shapes that differ in shape and in colour."""

    left: Item
    right: Item
    offset: tuple[float, float] = (0.0, 0.0)  # pixels, moves both
    ground: int = 245  # grey level of the background

    @property
    def combination(self) -> str:
        """What is held out, or not, as a whole."""
        return f"{self.left.colour} {self.left.shape}, {self.right.colour} {self.right.shape}"


def is_held_out_pair(pair: Pair) -> bool:
    """Is this combination of both shapes and both colours kept from training? In the manner of a
    Latin square: every three of the four are seen together."""
    places = [
        table.index(value)
        for item in (pair.left, pair.right)
        for table, value in ((SHAPES, item.shape), ([*COLOURS], item.colour))
    ]
    return sum(places) % len(COLOURS) == 4


def random_pair(rng: random.Random, split: str) -> Pair:
    """A pair of a split. Raises `ValueError` for a split that is none."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    while True:
        shapes, colours = rng.sample(SHAPES, 2), rng.sample([*COLOURS], 2)
        left, right = map(Item, shapes, colours)
        offset = rng.uniform(-JITTER, JITTER), rng.uniform(-JITTER, JITTER)
        pair = Pair(left, right, offset, rng.randint(238, 250))
        if is_held_out_pair(pair) == (split == "held_out"):
            return pair


def pair_caption(pair: Pair) -> str:
    """The exact description."""
    said = [f"a {item.colour} {item.shape}" for item in (pair.left, pair.right)]
    return f"{said[0]} on the left and {said[1]} on the right"


def render_pair(pair: Pair) -> Image.Image:
    """The pair as a 64 x 64 RGB image with smooth edges."""
    scale = SUPERSAMPLING
    canvas = Image.new("RGB", (IMAGE_SIZE * scale,) * 2, (pair.ground,) * 3)
    draw = ImageDraw.Draw(canvas)
    for item, (x, y) in zip((pair.left, pair.right), SIDES.values(), strict=True):
        x, y = x + pair.offset[0], y + pair.offset[1]
        draw_shape(draw, item.shape, x * scale, y * scale, HALF * scale, COLOURS[item.colour])
    return canvas.reduce(scale)


@dataclass(frozen=True)
class PairQuestion:
    """Of one of the two, by its side: its shape, or its colour, which is asked for by its shape."""

    side: str  # of SIDES
    attribute: str  # SHAPE or COLOUR

    @classmethod
    def random(cls, rng: random.Random) -> "PairQuestion":
        return cls(rng.choice([*SIDES]), rng.choice((SHAPE, COLOUR)))

    def item(self, pair: Pair) -> Item:
        """What it is about."""
        return pair.left if self.side == "left" else pair.right

    def answer(self, pair: Pair) -> str:
        """One word."""
        return getattr(self.item(pair), self.attribute)
