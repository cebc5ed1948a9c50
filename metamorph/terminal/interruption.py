"""Ctrl-C while an answer is made."""

import signal
from contextlib import AbstractContextManager


class Interruption(AbstractContextManager):
    """Turns the first Ctrl-C into a request to end the answer, at a moment when nothing is half
    done; the second one raises `KeyboardInterrupt` as ever."""

    def __enter__(self) -> "Interruption":
        self.requested = False
        self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def _request(self, number: int, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exception) -> None:
        signal.signal(signal.SIGINT, self._before)
