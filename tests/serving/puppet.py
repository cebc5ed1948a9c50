"""An assistant that says what a test makes it say, when it does: nothing is left to timing."""

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from metamorph.generation.events import Event, Finished, FinishReason, TextPiece, Usage
from metamorph.generation.messages import Message
from metamorph.generation.settings import AnswerSettings

PATIENCE = 20.0  # seconds until a request must have come


@dataclass
class PuppetAnswer:
    """An answer under way; the test says what happens in it."""

    messages: Sequence[Message]
    settings: AnswerSettings
    reencode: bool
    events: deque[Event] = field(default_factory=deque)
    finished: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def happen(self, *events: Event) -> None:
        self.events.extend(events)

    def write(self, text: str) -> None:
        self.happen(TextPiece(text))

    def finish(self, reason: FinishReason = "stop", error: str = "") -> None:
        self.happen(Finished(reason, Usage(prompt_tokens=21, answer_tokens=7), error))
        self.finished = True


@dataclass(frozen=True)
class PuppetStatus:
    waiting: int
    active: int
    slots: int = 8
    drawing: int = 0


class Puppet:
    """`metamorph.Assistant` as far as answers go. Made for one engine thread and one test."""

    def __init__(self):
        self._asked: queue.SimpleQueue[PuppetAnswer] = queue.SimpleQueue()
        self._open: list[PuppetAnswer] = []

    def next(self) -> PuppetAnswer:
        """The next answer that is asked for; waits for it. Raises `queue.Empty`."""
        return self._asked.get(timeout=PATIENCE)

    def submit(self, messages, settings=None, *, reencode=False) -> PuppetAnswer:
        answer = PuppetAnswer(messages, settings or AnswerSettings(), reencode)
        self._open.append(answer)
        self._asked.put(answer)
        return answer

    def advance(self) -> bool:
        for answer in self._open:
            if answer.cancelled.is_set() and not answer.finished:
                answer.finish("cancelled")
        self._open = [answer for answer in self._open if not answer.finished]
        time.sleep(0.005)
        return bool(self._open)

    def cancel(self, answer: PuppetAnswer) -> None:
        answer.cancelled.set()

    def status(self) -> PuppetStatus:
        return PuppetStatus(waiting=0, active=len(self._open))
