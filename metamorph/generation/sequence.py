"""The state machine of one sequence: text, image i of n, closing the image, finished."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor

from metamorph.generation.events import FinishReason
from metamorph.model.unified import MetaMorphConfig


@dataclass(frozen=True)
class TextSegment:
    token_ids: list[int]


@dataclass(frozen=True)
class ImageSegment:
    features: Tensor  # [tokens, C] fp32 unit vectors


class Step(NamedTuple):
    """What a sequence emitted in one step: a token id, or number `visual_index` of an image."""

    token_id: int | None
    visual_index: int | None


@dataclass(frozen=True)
class Generation:
    """Everything one prompt led to.

    `steps` counts text tokens and visual vectors alike; `token_forwards` also counts the prompt,
    but not a last token that was never fed back.
    """

    segments: list[TextSegment | ImageSegment]
    finish_reason: FinishReason
    steps: int
    token_forwards: int

    @property
    def token_ids(self) -> list[int]:
        """All text ids in order, end tokens and image brackets included."""
        texts = (segment for segment in self.segments if isinstance(segment, TextSegment))
        return [token_id for text in texts for token_id in text.token_ids]

    @property
    def images(self) -> list[Tensor]:
        """The features [tokens, C] of each image in order."""
        return [part.features for part in self.segments if isinstance(part, ImageSegment)]


class Mode(Enum):
    TEXT = auto()
    IMAGE = auto()
    CLOSING = auto()  # all vectors are out; the next token is <image_end> whatever the logits say
    FINISHED = auto()


@dataclass
class Sequence:
    """One sequence of a batch, driven by `accept_token`, `accept_vectors` and `close_image`.

    An image is begun only if the budget holds all its vectors and its end token, so no partial
    image is ever returned. A prompt that ends in `<image_start>` begins in image mode.
    """

    config: MetaMorphConfig
    budget: int
    token_forwards: int
    opens_image: bool = False
    mode: Mode = Mode.TEXT
    steps: int = 0
    finish_reason: FinishReason = "length"
    segments: list[TextSegment | ImageSegment] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)  # of the image under way, [n, C] each
    missing: int = 0  # vectors that the image under way still lacks

    def __post_init__(self):
        if self.opens_image:
            self._open_image(cost=0)

    def accept_token(self, token_id: int) -> bool:
        """Take a chosen text token. False if it would begin an image that does not fit."""
        if token_id == self.config.image_start_id:
            if not self._open_image(cost=1):
                return False
            self._emit(token_id)
            return True
        self._emit(token_id)
        if token_id in self.config.eos_ids:
            self.finish("stop")
        elif self.steps == self.budget:
            self.finish("length")
        return True

    def accept_vectors(self, vectors: Tensor) -> range:
        """Take predicted vectors [n, C] fp32, of which at most `missing` are left; returns their
        indices in the image."""
        count, first = vectors.shape[0], self.config.tokens_per_image - self.missing
        self.vectors.append(vectors)
        self.steps += count
        self.missing -= count
        if self.missing == 0:
            self.segments.append(ImageSegment(torch.cat(self.vectors)))
            self.vectors = []
            self.mode = Mode.CLOSING
        return range(first, first + count)

    def close_image(self) -> int:
        """Emit the forced `<image_end>` and return its id."""
        self.mode = Mode.TEXT
        self.accept_token(self.config.image_end_id)
        return self.config.image_end_id

    def finish(self, reason: FinishReason) -> None:
        """End here. Vectors of an image that is not complete are dropped."""
        self.mode = Mode.FINISHED
        self.finish_reason = reason
        self.vectors = []

    @property
    def finished(self) -> bool:
        return self.mode is Mode.FINISHED

    def result(self) -> Generation:
        return Generation(self.segments, self.finish_reason, self.steps, self.token_forwards)

    def _open_image(self, cost: int) -> bool:
        fits = self.steps + cost + self.config.tokens_per_image + 1 <= self.budget
        if fits:
            self.mode = Mode.IMAGE
            self.missing = self.config.tokens_per_image
        else:
            self.finish("length")
        return fits

    def _emit(self, token_id: int) -> None:
        self.steps += 1
        last = self.segments[-1] if self.segments else None
        if not isinstance(last, TextSegment):
            last = TextSegment([])
            self.segments.append(last)
        last.token_ids.append(token_id)
