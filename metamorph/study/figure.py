"""A figure of a study: its cells, how it looks, and the claims that are judged."""

from dataclasses import dataclass
from typing import Literal

from metamorph.evaluation.checker import ATTRIBUTES
from metamorph.study.cells import Cell
from metamorph.study.verdicts import Claim

QUESTIONS_RIGHT = "questions right"
DRAWINGS_RIGHT = "drawings all right"
DRAWINGS_MADE = "drawings made"
ZOOMS_RIGHT = "zoom questions right"
QUESTION_KINDS = (*ATTRIBUTES, "count")


def about(attribute: str) -> str:
    """The score of questions about one attribute."""
    return f"questions about {attribute} right"


@dataclass(frozen=True)
class Point:
    """A cell at its place in a figure."""

    series: str  # a line, or a row of a heat map
    label: str  # along the axis, or a column; a number on an axis of amounts
    cell: Cell


@dataclass(frozen=True)
class Figure:
    """A question about the method, the paper's answer, and the cells that give the toy's."""

    name: str
    title: str
    paper: str
    look: Literal["lines", "dots", "heat"]
    axis: str  # what the labels are
    scores: tuple[str, ...]  # a panel each
    points: tuple[Point, ...]
    claims: tuple[Claim, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Each once, in the order in which they are trained: claim by claim."""
        of_claims = [cell for claim in self.claims for cell in claim.cells]
        return tuple(dict.fromkeys(of_claims + [point.cell for point in self.points]))

    @property
    def measured(self) -> set[str]:
        """What it takes of each cell: the scores that it shows or judges."""
        return {*self.scores}.union(*(claim.scores for claim in self.claims))
