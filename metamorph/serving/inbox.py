"""Events of the answers to one request, on their way from the engine's thread to the event loop.

A reader may be slow. What waits for it is the last few events as they came; of more than those the
text is joined and the newest progress kept, so that it is never more than one answer.
"""

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import replace

from metamorph.generation.events import (
    DrawingProgress,
    Event,
    Finished,
    ImageProgress,
    TextPiece,
)

ROOM = 32  # events of an answer that wait as they came
Progress = (ImageProgress, DrawingProgress)


class Inbox:
    """Made on the event loop, which takes; the engine's thread puts."""

    def __init__(self, answers: int):
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[list[Event]] = [[] for _ in range(answers)]
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self.accepted: asyncio.Future[None] = self._loop.create_future()
        self.unfinished = answers
        self.closed = False  # nobody reads any more

    def put(self, answer: int, events: Iterable[Event]) -> None:
        with self._lock:
            waiting = self._waiting[answer]
            waiting += events
            if len(waiting) > ROOM:
                waiting[:] = joined(waiting)
        self._wake(self._changed.set)

    def accept(self) -> None:
        """The questions are in the engine's queue."""
        self._wake(self._accept)

    def fail(self, error: Exception) -> None:
        """No more comes; the reader meets the error. The first one counts."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._wake(self._accept)
        self._wake(self._changed.set)

    async def take(self) -> list[tuple[int, Event]]:
        """What has come, with the number of its answer; waits for something. Raises what `fail`
        was given."""
        await asyncio.sleep(0)  # a quick engine leaves the event loop to other requests too
        await self._changed.wait()
        self._changed.clear()
        with self._lock:
            taken = [(n, event) for n, events in enumerate(self._waiting) for event in events]
            for events in self._waiting:
                events.clear()
            if self._error is not None:
                raise self._error
        self.unfinished -= sum(isinstance(event, Finished) for _, event in taken)
        return taken

    def _accept(self) -> None:
        if self.accepted.done():
            return
        if self._error is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(self._error)
            self.accepted.exception()  # seen: its reader may have gone

    def _wake(self, call) -> None:
        if not self.closed:
            self._loop.call_soon_threadsafe(call)


def joined(events: Iterable[Event]) -> list[Event]:
    """The same answer in fewer events."""
    kept: list[Event] = []
    for event in events:
        _join(kept, event)
    return kept


def _join(kept: list[Event], event: Event) -> None:
    """Adds an event in the place of what it continues or outdates."""
    if isinstance(event, TextPiece):
        for at in reversed(range(len(kept))):
            earlier = kept[at]
            if isinstance(earlier, TextPiece):
                kept[at] = TextPiece(earlier.text + event.text)
                return
            if not isinstance(earlier, Progress):
                break
    if isinstance(event, Progress):
        for at, earlier in enumerate(kept):
            if type(earlier) is type(event) and earlier.number == event.number:
                event = _newer(event, earlier)
                del kept[at]
                break
    kept.append(event)


def _newer(event: Event, earlier: Event) -> Event:
    """Progress in the place of an earlier one, whose preview is the newest there is."""
    if isinstance(event, DrawingProgress) and isinstance(earlier, DrawingProgress):
        return replace(event, preview=event.preview or earlier.preview)
    return event
