"""Questions about a scene in English, by attribute.

Those of training are a file an attribute, a sentence a line: 14 plain ones, then some 115 that were
written without sight of the held-out ones, less what came near one of these.
"""

from pathlib import Path

TRAINING = Path(__file__).parent / "training_questions"
ATTRIBUTES = ("colour", "shape", "size", "place", "count")


def _lines(attribute: str) -> tuple[str, ...]:
    return tuple((TRAINING / f"{attribute}.txt").read_text(encoding="utf-8").splitlines())


QUESTIONS = {
    "train": {attribute: _lines(attribute) for attribute in ATTRIBUTES},
    "held_out": {
        "colour": (
            "Which paint would I need to copy it?",
            "How would you name the hue of this figure?",
            "Its colour, please.",
            "If you had to pick a crayon for it, which one?",
            "What is the tint of the thing?",
        ),
        "shape": (
            "What would a geometry teacher call this?",
            "Circle, square, triangle or cross: which one is it?",
            "Judging by its outline, what is it?",
            "Give me the name of the form in front of you.",
            "What sort of geometric object am I looking at?",
        ),
        "size": (
            "Does it take up a lot of room or only a little?",
            "Small, or large: which word fits?",
            "Could you judge how big this thing is?",
            "What can you say about its dimensions?",
            "Which of the two sizes was chosen?",
        ),
        "place": (
            "Whereabouts does it sit?",
            "To find it, which part of the page should I look at?",
            "Point me to the figure.",
            "Which spot was chosen for the drawing?",
            "How is the thing placed within the frame?",
        ),
        "count": (
            "What do you get if you count everything drawn here?",
            "Say how often the shape occurs.",
            "If I gave every figure a name, how many names would I need?",
            "Total number of items, please.",
            "Are there one, two, three, four or five of them?",
        ),
    },
}
