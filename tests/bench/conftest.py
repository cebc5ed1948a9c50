"""What the tests of all rooms share; its folder is where they import helpers from."""

import pytest

from bench.harness import timing


@pytest.fixture
def few_repeats(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_CALLS", 1)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
