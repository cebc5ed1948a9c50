"""A run of a decoder's stage that is interrupted where a test wants it."""

import os
import signal

import pytest

from metamorph.data.pictures import PictureLanes


def interrupt_in_step(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Within `patch`, this process gets signal `number` as it takes the pictures of that step."""
    next_pictures, calls = PictureLanes.next_pictures, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return next_pictures(self)

    patch.setattr(PictureLanes, "next_pictures", interrupted)
