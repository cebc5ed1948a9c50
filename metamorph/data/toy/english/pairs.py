"""English for two shapes side by side: `{one}` is on the left, `{other}` on the right."""

CAPTIONS = {
    "train": (
        "{one} on the left and {other} on the right",
        "{one} to the left of {other}",
        "{other} to the right of {one}",
        "{one} and, to its right, {other}",
        "{one} next to {other}, which is on the right",
        "on the left {one}, on the right {other}",
        "{one} (left) and {other} (right)",
    ),
    "held_out": (
        "{other} with {one} on its left",
        "two shapes, {one} followed by {other} from left to right",
        "left: {one}; right: {other}",
        "{one} in the left half and {other} in the right half",
    ),
}
QUESTIONS = {  # by what they ask for
    "shape": {
        "train": (
            "What shape is on the {side}?",
            "Which shape is on the {side}?",
            "Name the shape on the {side}.",
            "What is the {side} shape called?",
            "Tell me which shape you see on the {side}.",
        ),
        "held_out": (
            "Looking at the {side} half, which shape is there?",
            "The object on the {side} has what form?",
            "Identify the {side}-hand figure.",
        ),
    },
    "colour": {
        "train": (
            "What colour is the {shape}?",
            "Which colour does the {shape} have?",
            "What is the colour of the {shape}?",
            "Tell me the colour of the {shape}.",
            "Name the colour of the {shape}.",
        ),
        "held_out": (
            "The {shape} was painted in which colour?",
            "Somebody drew the {shape} in one colour; say which.",
            "Looking at the {shape} alone, which colour is it?",
        ),
    },
}
