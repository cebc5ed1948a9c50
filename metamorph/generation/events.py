"""What happens while an answer is made, in the order in which it happens.

Text goes on while a picture is still drawn: `ImageStarted` marks a picture's place in the answer,
and its later events name it by number.
"""

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image
from torch import Tensor

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TextPiece:
    """More text. Pieces joined are the text: whole characters, blanks as the model wrote them."""

    text: str


@dataclass(frozen=True)
class ImageStarted:
    """Picture `number` of the answer, from 0, stands here; it will have so many tokens."""

    number: int
    tokens: int


@dataclass(frozen=True)
class ImageProgress:
    """So many tokens of a picture are predicted."""

    number: int
    done: int
    tokens: int


@dataclass(frozen=True)
class ImageFeatures:
    """All features of a picture: [tokens, C] fp32 unit vectors on the CPU."""

    number: int
    features: Tensor = field(repr=False)


@dataclass(frozen=True)
class DrawingProgress:
    """So many denoising steps of a picture are done; maybe what it would look like by now."""

    number: int
    step: int
    steps: int
    preview: Image.Image | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ImageDrawn:
    """The pixels of a picture."""

    number: int
    picture: Image.Image = field(repr=False)


@dataclass(frozen=True)
class Usage:
    """What an answer cost, in tokens; a picture has as many as it has visual features.

    `cached_tokens` of the prompt were known from an earlier turn and not computed again.
    `answer_tokens` are text and visual tokens together.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    images: int = 0


@dataclass(frozen=True)
class Finished:
    """The last event of an answer, its pictures drawn. `error` is a sentence where it failed."""

    reason: FinishReason
    usage: Usage
    error: str = ""


Event = (
    TextPiece
    | ImageStarted
    | ImageProgress
    | ImageFeatures
    | DrawingProgress
    | ImageDrawn
    | Finished
)
