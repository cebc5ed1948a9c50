"""Reads toy scenes and pairs from pixels by rule: no learned part, so it can score drawings."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from metamorph.data.toy.pairs import SIDES, Item, Pair
from metamorph.data.toy.scenes import (
    COLOURS,
    COUNT_PLACES,
    IMAGE_SIZE,
    PLACES,
    SHAPES,
    SIZES,
    SUPERSAMPLING,
    Scene,
    draw_shape,
)
from metamorph.pixels import as_shown

ATTRIBUTES = ("colour", "shape", "size", "place")
ALL_RIGHT = "all right"  # every attribute that is asked for
CHANCE = {  # of guessing right
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "size": 1 / len(SIZES),
    "place": 1 / len(PLACES),
}
ZOOMED = ("colour", "shape", "size")  # what a picture of the shape alone shows
CONTRAST = 50.0  # least RGB distance from the ground of a pixel that is part of a shape
LEAST_PIXELS = 30  # fewer shape pixels mean an empty picture
PAIR_OVERLAP = 0.7  # least overlap of a shape of two with its outline
PRESENT_FRACTION = 0.25  # of the square around a die's place that must be filled


@dataclass(frozen=True)
class Reading:
    colour: str
    shape: str
    size: str
    place: str
    count: int


@cache
def _template(shape: str, size: str, x: float, y: float) -> np.ndarray:
    """Mask [64, 64] of one shape centred at (x, y)."""
    canvas = Image.new("L", (IMAGE_SIZE * SUPERSAMPLING,) * 2, 0)
    half = SIZES[size] * SUPERSAMPLING
    draw_shape(ImageDraw.Draw(canvas), shape, x * SUPERSAMPLING, y * SUPERSAMPLING, half, 255)
    return np.asarray(canvas.reduce(SUPERSAMPLING)) > 127


def _overlap(mask: np.ndarray, template: np.ndarray) -> float:
    return np.count_nonzero(mask & template) / max(np.count_nonzero(mask | template), 1)


def _middle_of(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of the middle of the mask's box, in steps of half a pixel."""
    rows, columns = np.nonzero(mask)
    return float(columns.min() + columns.max() + 1) / 2, float(rows.min() + rows.max() + 1) / 2


def _best_fit(mask: np.ndarray) -> tuple[str, str]:
    """Shape and size whose outline overlaps the mask most, centred on the mask's box."""
    x, y = _middle_of(mask)
    return max(
        ((shape, size) for shape in SHAPES for size in SIZES),
        key=lambda fit: _overlap(mask, _template(*fit, x, y)),
    )


def _nearest(value: np.ndarray, table: dict[str, tuple]) -> str:
    return min(table, key=lambda name: float(np.sum((value - np.array(table[name])) ** 2)))


def _stands_out(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels [64, 64] are part of a shape, and how far each is from the ground."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)
    mask = distance > CONTRAST
    if mask.any():  # the edge of a soft shape is where it is half as strong as inside
        mask = distance > max(CONTRAST, 0.5 * np.quantile(distance[mask], 0.75))
    return mask, distance


def read_scene(image: Image.Image) -> Reading | None:
    """What a 64 x 64 picture shows; `None` if it shows nothing.

    With several shapes the place is `"center"`, and shape and size are those of the top left one.
    """
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"image must be {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got {image.size}")
    pixels = np.asarray(as_shown(image), dtype=np.float32)  # [64, 64, 3]
    mask, distance = _stands_out(pixels)
    if np.count_nonzero(mask) < LEAST_PIXELS:
        return None
    core = distance >= np.quantile(distance[mask], 0.5)  # without the mixed pixels of edges
    colour = _nearest(np.median(pixels[core & mask], axis=0), COLOURS)

    half = SIZES["small"]
    windows = {
        place: mask[y - half : y + half, x - half : x + half] for place, (x, y) in PLACES.items()
    }
    present = {place for place, window in windows.items() if window.mean() > PRESENT_FRACTION}
    for count, places in COUNT_PLACES.items():
        if present == set(places):
            x, y = PLACES["top left"]
            corner = np.zeros_like(mask)
            corner[: y + half + 2, : x + half + 2] = mask[: y + half + 2, : x + half + 2]
            return Reading(colour, *_best_fit(corner), "center", count)

    return Reading(colour, *_best_fit(mask), _nearest(np.array(_middle_of(mask)), PLACES), 1)


def score(image: Image.Image, scene: Scene) -> dict[str, bool]:
    """Per attribute: does the picture show what the scene says? An empty picture shows nothing."""
    reading = read_scene(image)
    return {
        name: reading is not None and getattr(reading, name) == getattr(scene, name)
        for name in (*ATTRIBUTES, "count")
    }


def read_pair(image: Image.Image) -> tuple[Item | None, Item | None]:
    """What a 64 x 64 picture shows on its left and on its right: the only shape of that half, at
    any height and of either size; `None` where there is anything else, or nothing."""
    left, right = (_only_shape(image, side) for side in SIDES)
    return left, right


def _only_shape(image: Image.Image, side: str) -> Item | None:
    shown = as_shown(image)
    width = IMAGE_SIZE // 2
    start = 0 if side == "left" else width
    whole = Image.new("RGB", image.size, _ground(shown))
    whole.paste(shown.crop((start, 0, start + width, IMAGE_SIZE)), (width // 2, 0))
    reading = read_scene(whole)
    if reading is None:
        return None
    # The nearest outline may be far off: several shapes, or half of one, are none.
    mask, _ = _stands_out(np.asarray(whole, np.float32))
    outline = _template(reading.shape, reading.size, *_middle_of(mask))
    fits = _overlap(mask, outline) >= PAIR_OVERLAP
    return Item(reading.shape, reading.colour) if fits else None


def _ground(shown: Image.Image) -> tuple[int, int, int]:
    """The colour between the corners of a picture."""
    border = [shown.getpixel((x, y)) for x in (0, IMAGE_SIZE - 1) for y in (0, IMAGE_SIZE - 1)]
    red, green, blue = np.median(np.array(border), axis=0).astype(int).tolist()
    return red, green, blue


def score_pair(image: Image.Image, pair: Pair) -> dict[str, bool]:
    """Does the picture show both `objects`, on whichever side; these in their `colours`; and, for
    all to be right, each on its side?"""
    read, asked = read_pair(image), (pair.left, pair.right)
    shapes = [None if item is None else item.shape for item in read]
    return {
        "objects": {*shapes} == {item.shape for item in asked},
        "colours": {*read} == {*asked},
        ALL_RIGHT: read == asked,
    }


def score_zoom(image: Image.Image, scene: Scene) -> dict[str, bool]:
    """The same of a picture of the only shape twice as large, as `zoom` makes it: all but place and
    number, which it does not show."""
    side = IMAGE_SIZE // 2
    shown = as_shown(image)
    whole = Image.new("RGB", image.size, _ground(shown))
    whole.paste(shown.resize((side, side), Image.Resampling.BOX), (side // 2, side // 2))
    right = score(whole, scene)
    return {name: right[name] for name in ZOOMED}
