"""How large a study is.

The amounts are those of a toy that answers and draws after some thousand samples; the paper's are
tens to thousands of times larger. What is compared is the shape, not the numbers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How large a study is: amounts of samples, steps before the cells, tasks of a score."""

    drawn: tuple[int, ...]  # amounts of drawing samples, of figure 1
    asked: int  # question samples beside them, and in what else has one amount
    drawn_grid: tuple[int, ...]  # amounts of the heat map
    asked_grid: tuple[int, ...]
    language_steps: int  # of the language model, before it sees a picture
    align_steps: int  # of the projector, on descriptions
    row_length: int  # tokens of a step of a cell
    learning_rate: float
    questions: int  # held-out ones of a score
    drawings: int
    zooms: int


FULL = Scale(
    drawn=(500, 1500, 4500),
    asked=1500,
    drawn_grid=(500, 1500, 4500),
    asked_grid=(500, 1500, 4500),
    language_steps=120,
    align_steps=80,
    row_length=640,
    learning_rate=4e-3,
    questions=200,
    drawings=120,
    zooms=100,
)
SMOKE = Scale(
    drawn=(20, 40),
    asked=20,
    drawn_grid=(20, 40),
    asked_grid=(20, 40),
    language_steps=2,
    align_steps=2,
    row_length=640,
    learning_rate=4e-3,
    questions=20,
    drawings=2,
    zooms=2,
)
