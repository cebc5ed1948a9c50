"""Signals that ask a run to save a checkpoint and stop."""

import os
import signal
import time

# Whoever stops a job may reach a process twice, as Slurm and torchrun do when each passes it on.
ECHO_SECONDS = 2.0


class StopSignal:
    """Turns the first of `SIGNALS` into a request to stop after the step.

    The same one again within `ECHO_SECONDS` is taken for the first; any other ends the process at
    once, with a line on stderr. Used as a context manager; `requested` is looked at between steps.
    """

    # Ctrl-C, what schedulers send before they kill, and what Slurm can be told to send earlier.
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __enter__(self) -> "StopSignal":
        self.requested = False
        self._first, self._came = 0, 0.0
        self._previous = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def _request(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first, self._came = True, number, now
        elif number != self._first or now - self._came >= ECHO_SECONDS:
            name = signal.Signals(number).name
            line = f"\nmetamorph: ended at once by a second signal, {name}\n"
            os.write(2, line.encode())  # print may be what it interrupts
            os._exit(128 + number)  # as shells count; any other exit waits for a checkpoint

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
