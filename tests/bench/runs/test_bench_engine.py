"""The engine's entry: who takes part, what is verified, and what is the engine's own."""

import pytest
import torch

from bench.runs import engine

CPU = torch.device("cpu")
TINY = engine.Case(
    2, layers=2, hidden=64, intermediate=128, heads=4, key_heads=2, vocabulary=256,
    visual_width=32, prompt=30, history=60, dtype=torch.float32,
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_an_entry_verifies_and_times_all_that_runs_here():
    found = [line for line in TINY.run(CPU) if not line.reason.endswith("requests/s")]
    assert [(line.operation, line.provider) for line in found] == [
        ("engine: an image, its prompt read", "uncached"),
        ("engine: an image, its prompt read", "ours"),
        ("engine: mixed requests", "ours"),
        ("engine: mixed requests", "one at a time"),
        ("engine: first token of a second turn", "ours"),
        ("engine: first token of a second turn", "whole prefill"),
        ("engine: own share of a step", "ours"),
    ]
    absent, *others = found
    assert absent.status == "absent" and "the entry of one" in absent.reason
    assert all(line.status == "ok" for line in others)
    share = float(found[-1].reason.split("%")[0])
    assert 0 < share < 100


def test_another_image_or_token_is_wrong():
    trial = engine._Trial(TINY, CPU)
    answers = trial._answer(trial.engine, trial.prompts)
    assert trial._image_error(answers) < 1e-4 < trial._image_error(answers[::-1])
    token_ids = trial._first_token(known=True)
    assert trial._first_error(token_ids) < 1e-3
    assert trial._first_error([(token_id + 1) % 250 for token_id in token_ids]) > 1e-2
    mixed = trial._answer(trial.engine, trial.mixed)
    assert trial._mixed_error(mixed) < 1e-4
    assert trial._mixed_error(mixed[::-1]) == float("inf")


def test_a_watched_model_is_left_as_it_was():
    trial = engine._Trial(TINY, CPU)
    watched = engine._Watched(trial.engine)
    trial._answer(trial.engine, trial.prompts)
    assert watched.seconds > 0
    watched.restore()
    assert "run" not in vars(trial.model.language) and "predict_visual" not in vars(trial.model)
