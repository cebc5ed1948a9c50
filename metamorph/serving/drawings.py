"""Pictures that are asked for apart from any answer."""

from collections.abc import Callable, Hashable

from torch import Tensor

from metamorph.decoder.kinds import OpenedDecoder
from metamorph.generation.drawing import DrawingFailed, DrawingQueue
from metamorph.generation.events import DrawingProgress, Finished, Usage
from metamorph.generation.settings import DrawingSettings
from metamorph.serving.inbox import Inbox


class Drawings:
    """Drawn a denoising step at a time, for inboxes; on the engine's thread alone."""

    def __init__(self, decoder: OpenedDecoder):
        self._queue = DrawingQueue(decoder)
        self._inboxes: dict[Hashable, Inbox] = {}  # by key: what waits or is under way

    def __len__(self) -> int:
        """Pictures that wait or are under way."""
        return len(self._inboxes)

    @property
    def inboxes(self) -> set[Inbox]:
        return set(self._inboxes.values())

    def add(
        self, features: Callable[[], Tensor], seed: int, settings: DrawingSettings, inbox: Inbox
    ) -> None:
        """Draws features [tokens, C] that are made here."""
        try:
            self._queue.add(features(), seed=seed, number=0, settings=settings, key=inbox)
        except Exception as error:  # it concerns this request alone
            inbox.fail(error)
        else:
            self._inboxes[inbox] = inbox
            inbox.accept()

    def cancel(self, inbox: Inbox) -> None:
        self._queue.cancel(inbox)
        self._inboxes.pop(inbox, None)

    def advance(self) -> bool:
        """One step. Whether anything is left to draw."""
        for key, event in self._queue.advance():
            inbox = self._inboxes[key]
            if isinstance(event, DrawingProgress):
                inbox.put(0, [event])
                continue
            del self._inboxes[key]
            if isinstance(event, DrawingFailed):
                inbox.put(0, [Finished("error", Usage(), event.error)])
            else:
                inbox.put(0, [event, Finished("stop", Usage())])
        return len(self._queue) > 0
