"""A small world with exact words: coloured shapes on a light ground, drawn from a seed.

Everything a caption says can be read back from the pixels, so questions have one right answer and
drawings can be checked without a learned judge. Some combinations of shape, colour and place never
occur in the training split; the held-out split consists of nothing else.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

IMAGE_SIZE = 64  # pixels
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 160, 72),
    "blue": (45, 85, 214),
    "yellow": (243, 200, 28),
    "purple": (142, 68, 173),
    "black": (45, 45, 45),
}
SIZES = {"small": 8, "large": 13}  # half the side, pixels
PLACES = {  # centre (x, y), pixels
    "top left": (17, 17),
    "top right": (47, 17),
    "bottom left": (17, 47),
    "bottom right": (47, 47),
    "center": (32, 32),
}
COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
COUNT_PLACES = {  # as on a die, so that the count alone fixes the picture
    2: ("top left", "bottom right"),
    3: ("top left", "center", "bottom right"),
    4: ("top left", "top right", "bottom left", "bottom right"),
    5: tuple(PLACES),
}
MOVES = {
    ("top left", "right"): "top right",
    ("top left", "down"): "bottom left",
    ("top right", "left"): "top left",
    ("top right", "down"): "bottom right",
    ("bottom left", "right"): "bottom right",
    ("bottom left", "up"): "top left",
    ("bottom right", "left"): "bottom left",
    ("bottom right", "up"): "top right",
}
SPLITS = ("train", "held_out")
JITTER = 1.0  # pixels
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """One shape at a place, or several equal small ones laid out as on a die."""

    shape: str
    colour: str
    size: str
    place: str  # of the only shape; "center" where count > 1
    count: int = 1
    offset: tuple[float, float] = (0.0, 0.0)  # pixels, moves all shapes
    ground: int = 245  # grey level of the background

    @property
    def combination(self) -> str:
        """Shape, colour, place and number in words: what is held out, or not, as a whole."""
        return f"{COUNT_WORDS[self.count]} {self.colour} {self.shape} {self.place}"


def is_held_out(scene: Scene) -> bool:
    """Is this combination of shape, colour and place (of several: and number) kept from training?

    Of each shape in each colour at most one place and one number are held out, in the manner of a
    Latin square: every two values are seen together in training, these three never are.
    """
    shape, colour = SHAPES.index(scene.shape), list(COLOURS).index(scene.colour)
    place = list(PLACES).index(scene.place) if scene.count == 1 else scene.count - 2
    return (shape + colour + place) % len(COLOURS) == 4


def random_scene(rng: random.Random, split: str, places=tuple(PLACES)) -> Scene:
    """A scene of a split with one shape, at one of `places`."""
    return _draw_until(split, lambda: _any_scene(rng, places))


def random_count_scene(rng: random.Random, split: str) -> Scene:
    """A scene of a split with one to five equal small shapes."""

    def any_count_scene() -> Scene:
        count = rng.randint(1, 5)
        places = tuple(PLACES) if count == 1 else ("center",)
        return replace(_any_scene(rng, places), size="small", count=count)

    return _draw_until(split, any_count_scene)


def _any_scene(rng: random.Random, places: tuple[str, ...]) -> Scene:
    return Scene(
        shape=rng.choice(SHAPES),
        colour=rng.choice(tuple(COLOURS)),
        size=rng.choice(tuple(SIZES)),
        place=rng.choice(places),
        offset=(rng.uniform(-JITTER, JITTER), rng.uniform(-JITTER, JITTER)),
        ground=rng.randint(238, 250),
    )


def _draw_until(split: str, any_scene: Callable[[], Scene]) -> Scene:
    """A draw that falls in the split: even over its scenes, since the draws are."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    while True:
        scene = any_scene()
        if is_held_out(scene) == (split == "held_out"):
            return scene


def caption(scene: Scene) -> str:
    """The exact description, without an article for the whole sentence: `a large red circle at
    the top left` or `three small blue squares`."""
    if scene.count > 1:
        return f"{COUNT_WORDS[scene.count]} {scene.size} {scene.colour} {plural(scene.shape)}"
    return f"a {scene.size} {scene.colour} {scene.shape} at the {scene.place}"


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def centres(scene: Scene) -> list[tuple[float, float]]:
    """Pixel coordinates of every shape's centre."""
    places = (scene.place,) if scene.count == 1 else COUNT_PLACES[scene.count]
    return [(PLACES[p][0] + scene.offset[0], PLACES[p][1] + scene.offset[1]) for p in places]


def _outline(shape: str, x: float, y: float, half: float) -> list[tuple[float, float]]:
    """Corners of a polygon that fills the box (x +- half, y +- half)."""
    left, top, right, bottom = x - half, y - half, x + half, y + half
    if shape == "square":
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if shape == "triangle":
        return [(x, top), (right, bottom), (left, bottom)]
    arm = half * 0.36
    return [
        (x - arm, top), (x + arm, top), (x + arm, y - arm), (right, y - arm),
        (right, y + arm), (x + arm, y + arm), (x + arm, bottom), (x - arm, bottom),
        (x - arm, y + arm), (left, y + arm), (left, y - arm), (x - arm, y - arm),
    ]  # fmt: skip


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, half: float, fill
) -> None:
    """Fills one shape whose box is (x +- half, y +- half), in the coordinates of `draw`."""
    if shape == "circle":
        draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)
    else:
        draw.polygon(_outline(shape, x, y, half), fill=fill)


def render(scene: Scene) -> Image.Image:
    """The scene as a 64 x 64 RGB image with smooth edges."""
    scale = SUPERSAMPLING
    canvas = Image.new("RGB", (IMAGE_SIZE * scale,) * 2, (scene.ground,) * 3)
    draw = ImageDraw.Draw(canvas)
    half, fill = SIZES[scene.size] * scale, COLOURS[scene.colour]
    for x, y in centres(scene):
        draw_shape(draw, scene.shape, x * scale, y * scale, half, fill)
    return canvas.reduce(scale)


def zoom(scene: Scene) -> Image.Image:
    """The part of the picture around the only shape, enlarged to a full picture."""
    half = IMAGE_SIZE // 4
    x, y = (min(max(c, half), IMAGE_SIZE - half) for c in PLACES[scene.place])
    box = (x - half, y - half, x + half, y + half)
    return render(scene).resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC, box=box)
