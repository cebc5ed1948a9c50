"""A cell of a study: what one training is made of, all but its seed.

Cells of several figures that say the same are the same cell, which is trained once.
"""

from dataclasses import asdict, dataclass
from typing import Literal

# Tokens of a sample of a kind, with pictures of 16, and its pictures: means, for estimates of time.
TOKENS = {"question": 36, "describe": 40, "draw": 41, "edit": 52, "motion": 56, "zoom": 60}
PICTURES = {"question": 1, "describe": 1, "draw": 1, "edit": 2, "motion": 1.75, "zoom": 2}
TOKENS_OF_PICTURE = 16

VISUAL_COEFFICIENT = 5.0  # of the toy


@dataclass(frozen=True)
class Cell:
    """The samples of a training, and what differs from how the toy is usually trained."""

    amounts: tuple[tuple[str, int], ...]  # how many samples of each kind
    seen: int  # samples that the training takes; more than there are: it sees them again
    visual_loss: Literal["cosine", "l1"] = "cosine"
    visual_coefficient: float = VISUAL_COEFFICIENT
    prompt_images: Literal["causal", "bidirectional"] = "causal"
    visual_input_dropout: float = 0.0  # share of the pictures to draw that the model does not see
    grid: int = 4  # visual tokens a side
    draws_zoom: bool = True  # answers that zoom in show the close-up first

    @classmethod
    def of(cls, seen: int | None = None, /, **amounts: int) -> "Cell":
        """A cell of so many samples of each kind; each is seen once unless `seen` says more."""
        given = tuple((kind, amount) for kind, amount in sorted(amounts.items()) if amount)
        total = sum(amount for _, amount in given)
        return cls(given, seen or total)

    @property
    def name(self) -> str:
        """A file name that says all of it, such as `draw-200.question-3000.l1`."""
        parts = [f"{kind}-{amount}" for kind, amount in self.amounts]
        if self.seen != sum(amount for _, amount in self.amounts):
            parts.append(f"seen-{self.seen}")
        if self.visual_loss != "cosine":
            parts.append(self.visual_loss)
        if self.visual_coefficient != VISUAL_COEFFICIENT:
            parts.append(f"coefficient-{self.visual_coefficient:g}")
        if self.prompt_images != "causal":
            parts.append(self.prompt_images)
        if self.visual_input_dropout:
            parts.append(f"hidden-{self.visual_input_dropout:g}")
        if self.grid != 4:
            parts.append(f"grid-{self.grid}")
        if not self.draws_zoom:
            parts.append("zoom-undrawn")
        return ".".join(parts)

    @property
    def start(self) -> tuple[int, str]:
        """What a start must have been trained with for this cell: grid and prompt images."""
        return self.grid, self.prompt_images

    @property
    def tokens(self) -> float:
        """About how many tokens its training takes."""
        passes = self.seen / sum(amount for _, amount in self.amounts)
        more = self.grid**2 - TOKENS_OF_PICTURE
        return passes * sum(
            amount * (TOKENS[kind] + more * PICTURES[kind]) for kind, amount in self.amounts
        )

    def described(self) -> dict:
        """All of it, JSON-able."""
        return asdict(self) | {"amounts": dict(self.amounts)}
