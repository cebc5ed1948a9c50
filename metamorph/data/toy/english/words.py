"""Words for what a scene shows. Each means one value of one attribute, so a caption is exact.

Of each table, those under "new" are never said in training.
"""

COLOUR_WORDS = {
    "train": {
        "red": ("red", "crimson", "bright red"),
        "green": ("green", "emerald"),
        "blue": ("blue", "royal blue"),
        "yellow": ("yellow", "bright yellow"),
        "purple": ("purple", "violet"),
        "black": ("black", "jet black"),
    },
    "new": {
        "red": ("scarlet", "ruby"),
        "green": ("jade",),
        "blue": ("sapphire", "azure"),
        "yellow": ("golden",),
        "purple": ("plum",),
        "black": ("ebony",),
    },
}
SHAPE_WORDS = {  # without their plural
    "train": {
        "circle": ("circle", "disc"),
        "square": ("square",),
        "triangle": ("triangle",),
        "cross": ("cross", "plus sign"),
    },
    "new": {
        "circle": ("round shape",),
        "square": ("box",),
        "triangle": ("three-cornered shape",),
        "cross": ("plus symbol",),
    },
}
SIZE_WORDS = {
    "train": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "new": {"small": ("miniature", "petite"), "large": ("giant", "enormous")},
}
# Where, within a sentence: {vertical} is top or upper, {compass} northwest, {side} left.
CORNER_PHRASES = {
    "train": (
        "at the {vertical} {side}",
        "in the {vertical} {side}",
        "in the {vertical} {side} corner",
        "in the {vertical}-{side} corner",
    ),
    "new": ("in the {compass}", "near the {edge} edge, on the {side}-hand side"),
}
CENTRE_PHRASES = {
    "train": ("at the centre", "in the centre", "in the middle", "in the middle of the picture"),
    "new": ("at the midpoint", "halfway across and halfway down"),
}
# Where, alone.
CORNER_LABELS = {
    "train": ("{vertical} {side}", "{vertical} {side} corner"),
    "new": ("{compass}",),
}
CENTRE_LABELS = {"train": ("centre", "middle"), "new": ("midpoint",)}
VERTICALS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
COMPASS = {"top": "north", "bottom": "south", "left": "west", "right": "east"}
COUNTS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4"), 5: ("five", "5")}
DIRECTION_WORDS = {
    "train": {
        "left": ("left", "to the left"),
        "right": ("right", "to the right"),
        "up": ("up", "upwards"),
        "down": ("down", "downwards"),
    },
    "new": {
        "left": ("toward the left-hand side",),
        "right": ("toward the right-hand side",),
        "up": ("toward the top",),
        "down": ("toward the bottom",),
    },
}


def plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x")) else "s")


def places(place: str, phrases: dict, centre: dict, words: str) -> tuple[str, ...]:
    """All ways to say a place: `phrases` of a corner, `centre` of the centre, of one set of
    `words`."""
    if place == "center":
        return centre[words]
    edge, side = place.split()
    return tuple(
        phrase.format(
            vertical=vertical, side=side, edge=edge, compass=COMPASS[edge] + COMPASS[side]
        )
        for phrase in phrases[words]
        for vertical in (VERTICALS[edge] if "{vertical}" in phrase else ("",))
    )
