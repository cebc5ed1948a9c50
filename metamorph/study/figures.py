"""What each figure asks of the toy. Those about one thing alone are in `switches.py`."""

from dataclasses import replace
from itertools import product

from metamorph.study.cells import VISUAL_COEFFICIENT, Cell
from metamorph.study.figure import (
    DRAWINGS_RIGHT,
    QUESTION_KINDS,
    QUESTIONS_RIGHT,
    Figure,
    Point,
    about,
)
from metamorph.study.scale import Scale
from metamorph.study.switches import close_ups, hidden_pictures, prompt_images, tokens
from metamorph.study.verdicts import Correlation, Difference

# By which L1 pulls a prediction at right angles as hard as the cosine does, see docs/losses.md: the
# root of the width of a feature, 96, times as much.
L1_COEFFICIENT = round(VISUAL_COEFFICIENT * 96**0.5, 1)


def figures(scale: Scale) -> dict[str, Figure]:
    """All figures by name."""
    made = (
        _amounts(scale), _families(scale), _heat_map(scale), _question_kinds(scale), _losses(scale),
        close_ups(scale), prompt_images(scale), tokens(scale), hidden_pictures(scale),
    )  # fmt: skip
    return {figure.name: figure for figure in made}


def _amounts(scale: Scale) -> Figure:
    asked = scale.asked
    alone = [Cell.of(draw=n) for n in scale.drawn]
    longer = [Cell.of(n + asked, draw=n) for n in scale.drawn]
    joint = [Cell.of(draw=n, question=asked) for n in scale.drawn]
    series = {
        f"with {asked} questions": joint,
        "alone, as many samples seen": longer,
        "alone, each seen once": alone,
    }
    return Figure(
        "f1",
        "Drawing against the number of drawing samples, alone and with questions",
        "Joint training draws well from thousands of samples, drawing data alone from millions "
        "(Figure 2). Alone, small amounts are also few steps; the middle line is without that.",
        "lines",
        "drawing samples",
        (DRAWINGS_RIGHT, QUESTIONS_RIGHT),
        tuple(
            Point(name, str(amount), cell)
            for name, cells in series.items()
            for amount, cell in zip(scale.drawn, cells, strict=True)
        ),
        tuple(
            Difference(
                f"questions help drawing from {amount} samples, beside these alone, {how}",
                DRAWINGS_RIGHT, (with_questions,), (without,),
            )
            for amount, with_questions, longer_alone, once in reversed(
                [*zip(scale.drawn, joint, longer, alone, strict=True)]
            )
            for how, without in (("seen as long", longer_alone), ("seen once", once))
        ),
    )  # fmt: skip


FAMILIES = {
    "question": "questions",
    "describe": "descriptions",
    "edit": "edits",
    "motion": "motion",
    "zoom": "zoom, then answer",
}


def _families(scale: Scale) -> Figure:
    drawn, more = scale.drawn_grid[len(scale.drawn_grid) // 2], scale.asked_grid[-1]
    alone = Cell.of(drawn + more, draw=drawn)
    beside = {kind: Cell.of(draw=drawn, **{kind: more}) for kind in FAMILIES}
    return Figure(
        "f1b",
        f"Drawing from {drawn} drawing samples and {more} of another family",
        "Questions about pictures and videos help drawing most; edits, visual thinking and pure "
        "video little (Figure 3). The paper's amounts differ by family, these do not.",
        "dots",
        "beside drawing samples",
        (DRAWINGS_RIGHT,),
        (
            Point("", "nothing, as many seen", alone),
            *(Point("", FAMILIES[kind], cell) for kind, cell in beside.items()),
        ),
        tuple(
            Difference(f"{FAMILIES[kind]} help drawing", DRAWINGS_RIGHT, (cell,), (alone,))
            for kind, cell in beside.items()
        ),
    )


def _grid(scale: Scale) -> dict[tuple[int, int], Cell]:
    """The heat map's cells by (questions, drawing samples)."""
    return {
        (asked, drawn): Cell.of(draw=drawn, question=asked)
        for asked, drawn in product(scale.asked_grid, scale.drawn_grid)
    }


def _heat_map(scale: Scale) -> Figure:
    grid = _grid(scale)
    more_asked, more_drawn, few_asked, few_drawn = (
        tuple(cell for place, cell in grid.items() if place[axis] == amounts[end])
        for end in (-1, 0)
        for axis, amounts in ((0, scale.asked_grid), (1, scale.drawn_grid))
    )
    much_asked = grid[scale.asked_grid[-1], scale.drawn_grid[0]]
    much_drawn = grid[scale.asked_grid[0], scale.drawn_grid[-1]]
    return Figure(
        "f3",
        "Questions and drawing samples: which do more for which score",
        "More questions help both scores and do more than more drawing samples; with many "
        "questions drawing samples change answers little (Figures 4, 5 and 7).",
        "heat",
        "drawing samples",
        (QUESTIONS_RIGHT, DRAWINGS_RIGHT),
        tuple(
            Point(f"{asked} questions", str(drawn), cell) for (asked, drawn), cell in grid.items()
        ),
        (
            Difference("more questions help answers", QUESTIONS_RIGHT, more_asked, few_asked),
            Difference("more questions help drawing", DRAWINGS_RIGHT, more_asked, few_asked),
            Difference("more drawing helps answers", QUESTIONS_RIGHT, more_drawn, few_drawn),
            Difference("more drawing helps drawing", DRAWINGS_RIGHT, more_drawn, few_drawn),
            Difference(
                "most questions and least drawing draw better than the reverse",
                DRAWINGS_RIGHT, (much_asked,), (much_drawn,),
            ),
        ),
    )  # fmt: skip


def _question_kinds(scale: Scale) -> Figure:
    grid = _grid(scale)
    rows = tuple(
        tuple(grid[asked, drawn] for drawn in scale.drawn_grid) for asked in scale.asked_grid
    )
    return Figure(
        "f4",
        "Which answers move with drawing, by what is asked",
        "Scores of perception rise with drawing, those of knowledge hardly (Figure 8). The toy "
        "asks nothing that cannot be seen: it has no questions of knowledge.",
        "lines",
        "drawing samples",
        tuple(about(kind) for kind in QUESTION_KINDS),
        tuple(
            Point(f"{asked} questions", str(drawn), grid[asked, drawn])
            for asked in scale.asked_grid
            for drawn in scale.drawn_grid
        ),
        tuple(
            Correlation(
                f"answers about {kind} rise with drawing, at the same number of questions",
                about(kind), DRAWINGS_RIGHT, rows,
            )
            for kind in QUESTION_KINDS
        ),
    )  # fmt: skip


def _losses(scale: Scale) -> Figure:
    drawn, asked = scale.drawn[-1], scale.asked

    cosine = Cell.of(draw=drawn, question=asked)
    l1 = replace(cosine, visual_loss="l1", visual_coefficient=L1_COEFFICIENT)
    l1_alike = replace(cosine, visual_loss="l1")
    none = replace(cosine, visual_coefficient=0.0)
    questions = Cell.of(question=asked)
    return Figure(
        "f5",
        f"The visual loss, with {drawn} drawing samples and {asked} questions",
        "Answers are best with the cosine loss (55.9), worse with L1 (53.8) than with questions "
        "alone (55.5) (Table 3).",
        "dots",
        "visual loss",
        (QUESTIONS_RIGHT, DRAWINGS_RIGHT),
        (
            Point("", "cosine", cosine),
            Point("", "L1, pulling as hard", l1),
            Point("", "L1, same coefficient", l1_alike),
            Point("", "none", none),
            Point("", "questions alone", questions),
        ),
        (
            Difference("cosine answers better than L1", QUESTIONS_RIGHT, (cosine,), (l1,)),
            Difference("cosine draws better than L1", DRAWINGS_RIGHT, (cosine,), (l1,)),
            Difference(
                "drawing with the cosine loss helps answers",
                QUESTIONS_RIGHT, (cosine,), (questions,),
            ),
            Difference(
                "drawing with the L1 loss hurts answers", QUESTIONS_RIGHT, (questions,), (l1,)
            ),
            Difference(
                "the cosine loss helps answers, beside drawings without a loss",
                QUESTIONS_RIGHT, (cosine,), (none,),
            ),
        ),
    )  # fmt: skip
