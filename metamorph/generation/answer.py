"""One answer under way: what the engine emits becomes events, and at last a reply."""

from collections import deque
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from metamorph.generation.drawing import DrawingFailed
from metamorph.generation.events import (
    DrawingProgress,
    Event,
    Finished,
    FinishReason,
    ImageDrawn,
    ImageFeatures,
    ImageProgress,
    ImageStarted,
    TextPiece,
    Usage,
)
from metamorph.generation.job import Job
from metamorph.generation.messages import ASSISTANT, Drawing, Message
from metamorph.generation.sequence import ImageSegment, Step
from metamorph.generation.settings import AnswerSettings
from metamorph.generation.text_stream import TextStream


@dataclass(frozen=True)
class Reply:
    """An answer in order: text as the model wrote it, and pictures (without pixels where none were
    drawn). `error` is a sentence where it failed."""

    parts: tuple[str | Drawing, ...]
    finish_reason: FinishReason
    usage: Usage
    error: str = ""

    @property
    def text(self) -> str:
        """Its text, without blanks around each stretch of it."""
        texts = (part.strip() for part in self.parts if isinstance(part, str))
        return " ".join(text for text in texts if text)

    @property
    def drawings(self) -> list[Drawing]:
        return [part for part in self.parts if isinstance(part, Drawing)]

    @property
    def features(self) -> list[Tensor]:
        """Those [tokens, C] of each picture."""
        return [drawing.features for drawing in self.drawings]

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures that were drawn."""
        return [drawing.picture for drawing in self.drawings if drawing.picture is not None]

    @property
    def message(self) -> Message:
        """The turn that goes into the conversation before the next question."""
        return Message(ASSISTANT, self.parts)


class Answer:
    """One request under way.

    Attributes:
        events: what happened since somebody looked; the consumer takes them from the left. The last
            one is `Finished`.
        finished: whether that has come.
    """

    def __init__(self, job: Job, settings: AnswerSettings, text: TextStream, draws: bool):
        self.job, self.settings, self.draws = job, settings, draws
        self.events: deque[Event] = deque()
        self.finished = False
        self._stream = text
        self._parts: list[str | Drawing] = []
        self._images = 0  # pictures begun
        self._undrawn = 0  # pictures whose pixels are still to come
        self._reason: FinishReason | None = None  # where it differs from the job's
        self._error = ""

    @property
    def usage(self) -> Usage:
        sequence = self.job.sequence
        images = sum(isinstance(part, Drawing) for part in self._parts)
        return Usage(len(self.job.prompt), self.job.cached, sequence.steps, images)

    @property
    def reply(self) -> Reply:
        """What there is so far; whole once it has finished."""
        reason = self._reason or self.job.sequence.finish_reason
        return Reply(tuple(self._parts), reason, self.usage, self._error)

    def accept(self, steps: list[Step]) -> list[tuple[int, Tensor]]:
        """What the engine emitted. Returns (number, features) of pictures that are complete.

        Text after a stop string is dropped; `stopped` is then true.
        """
        complete, text = [], ""
        tokens = self.job.sequence.config.tokens_per_image
        for step in steps:
            if self.stopped:
                break
            if step.token_id == self.job.sequence.config.image_start_id:
                self._say(text + self._stream.flush())
                text = ""
                self._begin_image()
            elif step.visual_index is not None:
                if not self._images:  # the prompt itself began it
                    self._begin_image()
                number, done = self._images - 1, step.visual_index + 1
                self.events.append(ImageProgress(number, done, tokens))
                if done == tokens:
                    complete.append((number, self._complete(number)))
            elif step.token_id is not None:
                text += self._stream.add([step.token_id])
        self._say(text)
        return complete

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    def accept_drawing(self, event: DrawingProgress | ImageDrawn | DrawingFailed) -> None:
        """What came of a picture of this answer."""
        if isinstance(event, DrawingFailed):
            self._undrawn -= 1
            self._reason, self._error = "error", event.error
            return
        self.events.append(event)
        if isinstance(event, ImageDrawn):
            self._undrawn -= 1
            places = [at for at, part in enumerate(self._parts) if isinstance(part, Drawing)]
            drawing = self._parts[places[event.number]]
            assert isinstance(drawing, Drawing)
            self._parts[places[event.number]] = Drawing(drawing.features, event.picture)

    def cancel(self) -> None:
        """Its tokens are not needed any more, nor are its pictures."""
        self._undrawn, self._reason = 0, "cancelled"

    def finish_if_done(self) -> bool:
        """Append `Finished` once the engine is through and all pictures are drawn."""
        if self.finished or not self.job.finished:
            return False
        self._say(self._stream.flush())
        self._error = self._error or self.job.error
        if self._undrawn:
            return False
        self.finished = True
        reply = self.reply
        self.events.append(Finished(reply.finish_reason, reply.usage, self._error))
        return True

    def _say(self, text: str) -> None:
        if not text:
            return
        self.events.append(TextPiece(text))
        if self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        else:
            self._parts.append(text)

    def _begin_image(self) -> None:
        self.events.append(ImageStarted(self._images, self.job.sequence.config.tokens_per_image))
        self._images += 1

    def _complete(self, number: int) -> Tensor:
        images = [s for s in self.job.sequence.segments if isinstance(s, ImageSegment)]
        features = images[number].features.cpu()
        self._parts.append(Drawing(features))
        self._undrawn += self.draws
        self.events.append(ImageFeatures(number, features))
        return features
