"""A request on its way through the engine."""

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from metamorph.generation.history import image_key
from metamorph.generation.prompt import Prompt, visual_key
from metamorph.generation.sequence import ImageSegment, Mode, Sequence, Step
from metamorph.generation.settings import Sampling

DAMAGED = (
    "the model's {} are NaN or infinite: its weights are damaged, or its precision is too low for "
    "them"
)


@dataclass(eq=False)
class Job:
    """One request: what it asks for and how far it is. `error` is a sentence where it failed.

    Attributes:
        keys: what its slot knows: of the prompt, then of what was emitted (see `Prompt.keys`).
        read: tokens of the prompt in the cache; the first `cached` of them were there before.
    """

    prompt: Prompt
    sequence: Sequence
    sampling: Sampling
    max_images: int | None
    keys: list[int]
    slot: int | None = None
    read: int = 0
    cached: int = 0
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.sequence.finished

    @property
    def is_plain(self) -> bool:
        """Greedy, with neither a repetition penalty nor a limit of images."""
        plain = self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1
        return plain and self.max_images is None

    def accept(self, tokens: list[int], best: list[float], vectors: Tensor) -> list[Step]:
        """What the device emitted in n steps: tokens, the best logits, and vectors [n, C]; by the
        mode of the sequence one of the two counts. Returns what it adds to the answer; of steps
        behind the end nothing."""
        sequence, steps = self.sequence, []
        while len(steps) < len(tokens) and not sequence.finished:
            at = len(steps)
            if sequence.mode is Mode.IMAGE:
                new = self._accept_vectors(vectors[at : at + sequence.missing])
            else:
                new = self._accept_token(tokens[at], best[at])
            sequence.token_forwards += len(new[:-1] if sequence.finished else new)
            steps += new
        return steps

    def fail(self, error: str) -> None:
        """It ends with this sentence; what it wrote to the cache is nothing to go on from."""
        self.error = error
        self.keys.clear()
        self.sequence.finish("error")

    def _accept_vectors(self, vectors: Tensor) -> list[Step]:
        indices = self.sequence.accept_vectors(vectors)
        if self.sequence.mode is Mode.CLOSING:
            self._end_of_image()
        return [Step(None, index) for index in indices]

    def _accept_token(self, token_id: int, best: float) -> list[Step]:
        """Nothing where it only ends the answer."""
        sequence = self.sequence
        if sequence.mode is Mode.CLOSING:
            sequence.close_image()
        elif not isfinite(best):
            self.fail(DAMAGED.format("logits of the next token"))
            return []
        elif not sequence.accept_token(token_id):
            return []
        self.keys.append(token_id)
        return [Step(token_id, None)]

    def _end_of_image(self) -> None:
        segment = self.sequence.segments[-1]
        assert isinstance(segment, ImageSegment)
        if not segment.features.isfinite().all():
            self.sequence.segments.pop()
            self.fail(DAMAGED.format("features of a picture"))
            return
        key = image_key(segment.features)
        self.keys += [visual_key(key, place) for place in range(len(segment.features))]
