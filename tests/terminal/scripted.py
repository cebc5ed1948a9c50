"""An assistant that answers as a script says, an event a round."""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from PIL import Image

from metamorph.errors import UserError
from metamorph.generation.answer import Reply
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
from metamorph.generation.messages import Drawing, Message
from metamorph.generation.settings import AnswerSettings

TOKENS, WIDTH = 4, 8
FEATURES = torch.eye(WIDTH)[:TOKENS]


def say(*pieces: str) -> list[Event]:
    return [TextPiece(piece) for piece in pieces]


def draw(number: int = 0, colour: str = "red", steps: int = 2) -> list[Event]:
    """All events of a picture, in their order."""
    picture = Image.new("RGB", (6, 4), colour)
    return [
        ImageStarted(number, TOKENS),
        *(ImageProgress(number, done, TOKENS) for done in range(1, TOKENS + 1)),
        ImageFeatures(number, FEATURES),
        *(DrawingProgress(number, step, steps) for step in range(1, steps + 1)),
        ImageDrawn(number, picture),
    ]


def finish(reason: str = "stop", error: str = "") -> list[Event]:
    return [Finished(reason, Usage(answer_tokens=7), error)]


@dataclass
class Answer:
    script: deque[Event]
    events: deque[Event] = field(default_factory=deque)
    told: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return any(isinstance(event, Finished) for event in self.told)

    @property
    def reply(self) -> Reply:
        parts, places = [], {}
        for event in self.told:
            match event:
                case TextPiece(text):
                    parts.append(text)
                case ImageFeatures(number, features):
                    places[number] = len(parts)
                    parts.append(Drawing(features))
                case ImageDrawn(number, picture):
                    parts[places[number]] = Drawing(parts[places[number]].features, picture)
        end = self.told[-1]
        return Reply(tuple(parts), end.reason, end.usage, end.error)


class ScriptedAssistant:
    """Each answer is a list of events, or an error that `submit` raises. `asked`: what `submit` was
    given, one after another. `before_event(event)` is called when its turn comes."""

    def __init__(self, *answers: list[Event] | UserError, decoder: bool = True):
        self.answers = deque(answers)
        self.decoder = object() if decoder else None
        config = SimpleNamespace(tokens_per_image=TOKENS, visual_width=WIDTH)
        self.model = SimpleNamespace(config=config)
        self.asked: list[tuple[tuple[Message, ...], AnswerSettings, bool]] = []
        self.before_event = lambda event: None
        self.current: Answer | None = None

    def submit(self, messages, settings=None, *, reencode=False) -> Answer:
        self.asked.append((tuple(messages), settings, reencode))
        script = self.answers.popleft()
        if isinstance(script, UserError):
            raise script
        self.current = Answer(deque(script))
        return self.current

    def advance(self) -> bool:
        event = self.current.script.popleft()
        self.before_event(event)
        self.current.events.append(event)
        self.current.told.append(event)
        return not self.current.finished

    def cancel(self, answer: Answer) -> None:
        answer.script = deque(finish("cancelled"))
