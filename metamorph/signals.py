"""Signals that ask a run to save a checkpoint and stop."""

import os
import signal


class StopSignal:
    """Turns the first of `SIGNALS` into a request to stop after the step; a second one ends the
    process at once.

    Used as a context manager; `requested` is looked at between steps.
    """

    # Ctrl-C, what schedulers send before they kill, and what Slurm can be told to send earlier.
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __enter__(self) -> "StopSignal":
        self.requested = False
        self._previous = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def _request(self, number: int, frame) -> None:
        if self.requested:
            os._exit(128 + number)  # as shells count; any other exit waits for a checkpoint
        self.requested = True

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
