"""A request on its way through the engine."""

from dataclasses import dataclass

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

    def accept(self, token_id: int, is_finite: bool, vector: Tensor) -> Step | None:
        """What the device emitted: a token, whether its logits were finite, and a vector [C]; by
        the mode of the sequence one of the two counts. Returns what it adds to the answer; None
        where it only ends it."""
        sequence, step = self.sequence, None
        if sequence.mode is Mode.IMAGE:
            index = sequence.accept_visual(vector)
            step = Step(None, index)
            if index + 1 == sequence.config.tokens_per_image:
                self._end_of_image()
        elif sequence.mode is Mode.CLOSING:
            step = Step(sequence.close_image(), None)
            self.keys.append(token_id)
        elif not is_finite:
            self.fail(DAMAGED.format("logits of the next token"))
        elif sequence.accept_token(token_id):
            step = Step(token_id, None)
            self.keys.append(token_id)
        sequence.token_forwards += step is not None and not sequence.finished
        return step

    def fail(self, error: str) -> None:
        """It ends with this sentence; what it wrote to the cache is nothing to go on from."""
        self.error = error
        self.keys.clear()
        self.sequence.finish("error")

    def _end_of_image(self) -> None:
        segment = self.sequence.segments[-1]
        assert isinstance(segment, ImageSegment)
        if not segment.features.isfinite().all():
            self.sequence.segments.pop()
            self.fail(DAMAGED.format("features of a picture"))
            return
        key = image_key(segment.features)
        self.keys += [visual_key(key, place) for place in range(len(segment.features))]
