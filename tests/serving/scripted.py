"""Stand-ins for a model and its decoder, which answer by a script; the server's tests need no more.

An answer depends on its own conversation, seed and settings, and on nothing else, so that a crossed
answer is seen. It repeats the last question; one that asks for an image gets one; some words make
it misbehave.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from PIL import Image

from metamorph.decoder.denoising import DrawingStep
from metamorph.errors import UserError
from metamorph.generation.events import (
    DrawingProgress,
    Event,
    Finished,
    ImageDrawn,
    ImageFeatures,
    ImageProgress,
    ImageStarted,
    TextPiece,
    Usage,
)
from metamorph.generation.messages import USER, Drawing, Message
from metamorph.generation.settings import AnswerSettings
from metamorph.pixels import Square
from metamorph.serving.served import Served

TOKENS, WIDTH, SIDE, STEPS = 4, 6, 32, 4
CONTEXT = 500  # words of a conversation
ON = "on and " * 200  # what is told by an answer that goes on
# Words of a question that make it misbehave.
CRASH = "CRASH"  # the round raises
FAIL = "FAIL"  # the answer ends with an error
HOLD = "HOLD"  # the answer goes on until it is cancelled
PLAIN = "PLAIN"  # no picture is drawn, whatever is asked
REFUSE = "REFUSE"  # the conversation cannot be answered
TRIP = "TRIP"  # the conversation meets a mistake of the program


@dataclass(eq=False)
class ScriptedAnswer:
    script: Iterator[Event]
    events: deque[Event] = field(default_factory=deque)
    finished: bool = False
    cancelled: bool = False


class ScriptedAssistant:
    """Plays one event of each answer a round; `slots` of them at once."""

    def __init__(self, slots: int = 4):
        self.slots = slots
        self.active: list[ScriptedAnswer] = []
        self.waiting: deque[ScriptedAnswer] = deque()
        self.conversations: list[Sequence[Message]] = []  # as they were read
        self.settings: list[tuple[AnswerSettings, bool]] = []  # of each, and `reencode`

    def submit(
        self,
        messages: Sequence[Message],
        settings: AnswerSettings,
        *,
        reencode: bool = False,
    ) -> ScriptedAnswer:
        if messages[-1].role != USER:
            raise UserError("a conversation has to end with a user's turn")
        question = messages[-1].text
        if REFUSE in question or sum(len(m.text.split()) for m in messages) > CONTEXT:
            raise UserError("the conversation is longer than the model's context")
        if TRIP in question:
            raise RuntimeError("a mistake of the program")
        self.conversations.append(messages)
        self.settings.append((settings, reencode))
        answer = ScriptedAnswer(script(messages, settings))
        self.waiting.append(answer)
        return answer

    def advance(self) -> bool:
        while self.waiting and len(self.active) < self.slots:
            self.active.append(self.waiting.popleft())
        for answer in [*self.active, *self.waiting]:
            if answer.cancelled:
                event = Finished("cancelled", Usage())
            elif answer in self.active:
                event = next(answer.script)
            else:
                continue
            answer.events.append(event)
            answer.finished = isinstance(event, Finished)
        self.active = [answer for answer in self.active if not answer.finished]
        self.waiting = deque(answer for answer in self.waiting if not answer.finished)
        return bool(self.active or self.waiting)

    def cancel(self, answer: ScriptedAnswer) -> None:
        answer.cancelled = not answer.finished

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(
            waiting=len(self.waiting), active=len(self.active), slots=self.slots, drawing=0
        )


def script(messages: Sequence[Message], settings: AnswerSettings) -> Iterator[Event]:
    """The events of an answer."""
    question = messages[-1].text
    pictures = sum(not isinstance(part, str) for message in messages for part in message.parts)
    prompt = sum(len(message.text.split()) for message in messages) + TOKENS * pictures
    words = question.split()
    draws = "image" in words and PLAIN not in words and settings.max_images != 0
    said = f"You said: {question}" + (f" (with {pictures} pictures)" if pictures else "")
    pieces = [f"{word} " for word in said.split()]
    for piece in pieces[: settings.max_new_tokens]:
        yield TextPiece(piece)
    while HOLD in words:
        time.sleep(0.001)
        yield TextPiece(ON)
    if CRASH in words:
        raise RuntimeError("the device is on fire")
    usage = Usage(prompt, 0, len(pieces) + TOKENS * draws, int(draws))
    if FAIL in words:
        yield Finished("error", usage, "the logits are not finite")
        return
    if draws:
        yield from picture(settings)
        yield TextPiece("There.")
    yield Finished("length" if len(pieces) > settings.max_new_tokens else "stop", usage)


def picture(settings: AnswerSettings) -> Iterator[Event]:
    yield ImageStarted(0, TOKENS)
    for done in range(1, TOKENS + 1):
        yield ImageProgress(0, done, TOKENS)
    seed = settings.sampling.seed
    yield ImageFeatures(0, features_of(seed))
    if settings.drawing is not None:
        steps, every = settings.drawing.num_inference_steps or STEPS, settings.drawing.preview_every
        for step in range(1, steps + 1):
            shown = every and step % every == 0
            yield DrawingProgress(0, step, steps, drawn(seed) if shown else None)
        yield ImageDrawn(0, drawn(seed))


def features_of(seed: int) -> torch.Tensor:
    """[TOKENS, WIDTH], unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(TOKENS, WIDTH, generator=generator), dim=-1)


def colour_of(seed: int) -> tuple[int, int, int]:
    return seed % 256, seed // 256 % 256, 128


def drawn(seed: int) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), colour_of(seed))


class ScriptedDenoising:
    def __init__(self, seeds: list[int], steps: int):
        self.seeds, self.step, self.steps = seeds, 0, steps

    def __next__(self) -> DrawingStep:
        self.step += 1
        last = self.step == self.steps
        pictures = [drawn(seed) for seed in self.seeds] if last else None
        return DrawingStep(self.step, self.steps, None, pictures)

    def keep(self, rows: list[int]) -> None:
        self.seeds = [self.seeds[row] for row in rows]


class ScriptedDecoder:
    """Draws the colour that the noise says, as far as `DrawingQueue` asks."""

    feature_width = WIDTH
    config = SimpleNamespace(sampling_steps=STEPS, guidance_scale=1.0)

    def steps(self, features, *, num_inference_steps, generator, **settings) -> ScriptedDenoising:
        return ScriptedDenoising([g.initial_seed() for g in generator], num_inference_steps)


def seen_by(image: Image.Image) -> torch.Tensor:
    """Features of a picture that tell its first pixel."""
    return features_of(image.getpixel((0, 0))[0])


def scripted_served(**changes) -> Served:
    values = dict(
        name="scripted", created=1_700_000_000, tokens=TOKENS, width=WIDTH, shrink=Square(SIDE),
        see=seen_by, context=2 * CONTEXT, drawing_steps=STEPS,
    )  # fmt: skip
    return Served(**values | changes)


def own_picture(seed: int) -> Drawing:
    return Drawing(features_of(seed), drawn(seed))
