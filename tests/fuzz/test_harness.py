"""The hunt finds what it is there for: each kind of failure, planted at one seed, is reported."""

import os
import time
from pathlib import Path
from random import Random

import pytest

from metamorph.errors import SampleError, UserError
from tests.fuzz import harness
from tests.fuzz.harness import hunt, judge

CASES = 5


def sound(chance: Random, folder: Path) -> str:
    if chance.random() < 0.5:
        raise SampleError("corrupt image", "image a.png cannot be read: it ends early")
    return "read"


def traceback_(chance: Random, folder: Path) -> str:
    return str(folder / None)  # type: ignore[operator]


def obscure(chance: Random, folder: Path) -> str:
    raise UserError("a.jsonl: KeyError: 'from'")


def hang(chance: Random, folder: Path) -> str:
    time.sleep(60)
    return "read"


def spin(chance: Random, folder: Path) -> str:
    while True:
        chance.random()


def death(chance: Random, folder: Path) -> str:
    os._exit(11)


@pytest.fixture(autouse=True)
def seeds_from_zero(monkeypatch):
    """Whatever a longer hunt asks of the other tests."""
    monkeypatch.setattr(harness, "FIRST_SEED", 0)
    monkeypatch.setattr(harness, "ROUNDS", 1.0)


def test_sound_readers_pass_and_are_counted(tmp_path):
    report = hunt("sound", sound, tmp_path, CASES)
    assert report.outcomes.total() == CASES
    assert set(report.outcomes) == {"read", "refused"}
    assert "seeds 0 to 4" in report.text()


@pytest.mark.parametrize(
    "attack, found",
    [
        (traceback_, "TypeError: unsupported operand"),
        (obscure, "'KeyError' is no word for a user"),
        (hang, "silent for 0.5 s"),
        (spin, "longer than 0.5 s"),
        (death, "the process died with 11"),
        (sound, "MiB"),
    ],
)
def test_a_failure_is_reported_with_its_seed(attack, found, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE", 0.5 if attack is hang else 60.0)
    monkeypatch.setattr(harness, "SECONDS", 0.5 if attack in (hang, spin) else 5.0)
    monkeypatch.setattr(harness, "MEMORY", 2**20 if attack is sound else harness.MEMORY)
    monkeypatch.setattr(harness, "MOST_FAILURES", 1)
    with pytest.raises(AssertionError, match=f"(?s)seed 0: .*{found}"):
        hunt("planted", attack, tmp_path, CASES)


def test_messages_are_judged():
    assert judge("image a.png is too large") == "refused"
    for message in (
        "two\nlines",
        "x" * 5000,
        "'NoneType' object",
        "<_io.BytesIO at 0x7f0011223344>",
    ):
        assert judge(message).startswith("FAILED")
