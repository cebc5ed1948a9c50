"""Figures about one thing that a training does or leaves: two cells each way, and no amounts."""

from dataclasses import replace

from metamorph.study.cells import Cell
from metamorph.study.figure import DRAWINGS_RIGHT, QUESTIONS_RIGHT, ZOOMS_RIGHT, Figure, Point
from metamorph.study.scale import Scale
from metamorph.study.verdicts import Difference

DROPOUT = 0.5  # of pictures to draw, where some are hidden


def close_ups(scale: Scale) -> Figure:
    drawn = Cell.of(zoom=scale.asked)
    undrawn = replace(drawn, draws_zoom=False)
    return Figure(
        "f6",
        f"Zoom in, then answer: {scale.asked} samples with the close-up drawn before the answer",
        "Visual thinking is one of the paper's families of data; it has no number for what the "
        "picture in between does for the answer.",
        "dots",
        "before the answer",
        (ZOOMS_RIGHT,),
        (Point("", "a close-up", drawn), Point("", "nothing", undrawn)),
        (
            Difference("a close-up in between helps answers", ZOOMS_RIGHT, (drawn,), (undrawn,)),
            Difference("a close-up in between hurts answers", ZOOMS_RIGHT, (undrawn,), (drawn,)),
        ),
    )


def prompt_images(scale: Scale) -> Figure:
    causal = Cell.of(draw=scale.drawn[-1], question=scale.asked)
    whole = replace(causal, prompt_images="bidirectional")
    return Figure(
        "f7",
        "What the tokens of a picture in a prompt see of it: those before them, or all",
        "Pictures are causal, as all else is; nothing else is compared.",
        "dots",
        "pictures in prompts",
        (QUESTIONS_RIGHT, DRAWINGS_RIGHT),
        (Point("", "causal", causal), Point("", "bidirectional", whole)),
        (
            Difference("bidirectional pictures help answers", QUESTIONS_RIGHT, (whole,), (causal,)),
            Difference("bidirectional pictures hurt answers", QUESTIONS_RIGHT, (causal,), (whole,)),
        ),
    )


def tokens(scale: Scale) -> Figure:
    few = Cell.of(draw=scale.drawn[-1], question=scale.asked)
    many = replace(few, grid=8)
    return Figure(
        "f8",
        "Tokens of a picture",
        "64 tokens a picture, chosen so that videos fit; no other number is compared.",
        "dots",
        "tokens of a picture",
        (QUESTIONS_RIGHT, DRAWINGS_RIGHT),
        (Point("", "16", few), Point("", "64", many)),
        (
            Difference("64 tokens answer better than 16", QUESTIONS_RIGHT, (many,), (few,)),
            Difference("64 tokens draw better than 16", DRAWINGS_RIGHT, (many,), (few,)),
        ),
    )


def hidden_pictures(scale: Scale) -> Figure:
    sizes = {  # drawing samples and questions of a pair of trainings
        "few": (scale.drawn_grid[len(scale.drawn_grid) // 2], scale.asked_grid[-1]),
        "many": (scale.drawn[-1], scale.asked),
    }
    points, claims = [], []
    for amount, (draw, question) in sizes.items():
        shown = Cell.of(draw=draw, question=question)
        hidden = replace(shown, visual_input_dropout=DROPOUT)
        label = f"{draw}+{question}"
        points += [Point("", f"{label} shown", shown), Point("", f"{label} half hidden", hidden)]
        claims += [
            Difference(f"hiding helps {what}, {amount} drawing samples", score, (hidden,), (shown,))
            for what, score in (("drawing", DRAWINGS_RIGHT), ("answers", QUESTIONS_RIGHT))
        ]
    return Figure(
        "f9",
        "Half of the pictures to draw hidden from the model in training, or none",
        "Pictures are predicted from the words and the true tokens before; nothing is hidden.",
        "dots",
        "drawing samples + questions",
        (DRAWINGS_RIGHT, QUESTIONS_RIGHT),
        tuple(points),
        tuple(claims),
    )
