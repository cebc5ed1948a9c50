"""The one thread that owns the model. Requests come to it through a queue; it sleeps when idle."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from metamorph.decoder.kinds import OpenedDecoder
from metamorph.generation.events import Event
from metamorph.generation.messages import Message
from metamorph.generation.settings import AnswerSettings, DrawingSettings
from metamorph.serving.drawings import Drawings
from metamorph.serving.inbox import Inbox
from metamorph.serving.refusals import failed, unavailable

STOP_SECONDS = 10.0  # for a round to end
logger = logging.getLogger("metamorph.serving")


class Answer(Protocol):
    events: deque[Event]
    finished: bool


class Status(Protocol):
    @property
    def waiting(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def drawing(self) -> int: ...


class Speaker(Protocol):
    """What the thread needs of `metamorph.Assistant`."""

    def submit(
        self, messages: Sequence[Message], settings: AnswerSettings, *, reencode: bool = False
    ) -> Any: ...
    def advance(self) -> bool: ...
    def cancel(self, answer: Any) -> None: ...
    def status(self) -> Status: ...


@dataclass(frozen=True)
class Question:
    """What one answer is asked for with."""

    messages: Sequence[Message]
    settings: AnswerSettings
    reencode: bool = False


@dataclass(frozen=True)
class _Command:
    run: Callable[[], None]
    fail: Callable[[Exception], None]


class EngineThread:
    """Many requests, one model. All but the thread itself is called on the event loop.

    An exception that the model did not foresee ends it: the requests at hand fail, and so do all
    that come later; `broken` says so. `decoder` draws what is asked for apart from any answer, a
    step at a time between the rounds; without one nothing is.
    """

    def __init__(self, assistant: Speaker, decoder: OpenedDecoder | None = None):
        self._assistant = assistant
        self._drawings = None if decoder is None else Drawings(decoder)
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._open: list[tuple[Answer, Inbox, int]] = []  # the thread's alone
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.broken = False
        self.status = assistant.status()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its round; requests at hand fail."""
        self._commands.put(None)
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            logger.error("the engine does not end its round; it is left behind")

    @property
    def waiting(self) -> int:
        """Answers that are asked for and not begun."""
        return self.status.waiting + self._commands.qsize()

    @property
    def drawings(self) -> int:
        """Pictures that are drawn or wait for it."""
        apart = 0 if self._drawings is None else len(self._drawings)
        return self.status.drawing + apart

    def ask(self, questions: Sequence[Question]) -> Inbox:
        """Puts them into the engine's queue. Its events come to the inbox; `accepted` raises
        `UserError` for a question that cannot be answered."""
        inbox = Inbox(len(questions))
        self._put(_Command(lambda: self._submit(inbox, questions), inbox.fail))
        return inbox

    def close(self, inbox: Inbox) -> None:
        """Nobody reads any more: what is not finished is cancelled."""
        inbox.closed = True
        if inbox.unfinished:
            self._put(_Command(lambda: self._cancel(inbox), lambda error: None))

    def end_all(self, error: Exception) -> None:
        """The requests at hand fail with it."""

        def end() -> None:
            for inbox in self._at_hand():
                inbox.fail(error)
                self._cancel(inbox)

        self._put(_Command(end, lambda error: None))

    def draw(
        self, features: Callable[[], Tensor], *, seed: int, settings: DrawingSettings
    ) -> Inbox:
        """Draws features [tokens, C] that are made on the thread; events as of an answer."""
        drawings = self._drawings
        if drawings is None:
            raise ValueError("there is no decoder")
        inbox = Inbox(1)
        self._put(_Command(lambda: drawings.add(features, seed, settings, inbox), inbox.fail))
        return inbox

    def _put(self, command: _Command) -> None:
        with self._lock:
            if not self.broken:
                self._commands.put(command)
                return
        command.fail(unavailable("the engine has failed or was stopped", "engine_failed"))

    @torch.no_grad()  # which is said to each thread
    def _run(self) -> None:
        try:
            busy = False
            while self._obey(wait=not busy):
                busy = self._assistant.advance()
                self._deliver()
                if self._drawings is not None:
                    busy |= self._drawings.advance()
                self.status = self._assistant.status()
        except BaseException:
            logger.exception("the engine has failed; no request is answered any more")
            self._break(failed("the engine has failed", "engine_failed"))
        else:
            self._break(unavailable("the server is stopping", "stopping"))

    def _obey(self, wait: bool) -> bool:
        """Runs the commands that have come, or waits for one. Whether to go on."""
        while wait or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command.run()
            wait = False
        return True

    def _submit(self, inbox: Inbox, questions: Sequence[Question]) -> None:
        answers: list[Answer] = []
        try:
            for question in questions:
                answers.append(
                    self._assistant.submit(
                        question.messages, question.settings, reencode=question.reencode
                    )
                )
        except Exception as error:  # nothing was computed yet: it concerns this request alone
            for answer in answers:
                self._assistant.cancel(answer)
            inbox.fail(error)
            return
        self._open += [(answer, inbox, number) for number, answer in enumerate(answers)]
        inbox.accept()

    def _cancel(self, inbox: Inbox) -> None:
        for answer, its_inbox, _ in self._open:
            if its_inbox is inbox:
                self._assistant.cancel(answer)
        if self._drawings is not None:
            self._drawings.cancel(inbox)

    def _at_hand(self) -> set[Inbox]:
        drawn = set() if self._drawings is None else self._drawings.inboxes
        return {inbox for _, inbox, _ in self._open} | drawn

    def _deliver(self) -> None:
        for answer, inbox, number in self._open:
            if answer.events:
                events = [answer.events.popleft() for _ in range(len(answer.events))]
                if not inbox.closed:
                    inbox.put(number, events)
        self._open = [one for one in self._open if not one[0].finished or one[0].events]

    def _break(self, error: Exception) -> None:
        with self._lock:
            self.broken = True
        for inbox in self._at_hand():
            inbox.fail(error)
        while not self._commands.empty():
            if command := self._commands.get():
                command.fail(error)
