"""Entries small enough for every test run."""

import pytest
import torch

from bench import attention, decode, timing

SMALL = {"query_heads": 4, "key_heads": 2, "head_dim": 16, "dtype": torch.float32}
TINY_ATTENTION = attention.Case("spans", 160, quick=True, **SMALL)
TINY_DECODE = decode.Case("decode-tiny", (20, 3), **SMALL)


@pytest.fixture
def few_repeats(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_CALLS", 1)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(timing, "MOST_ROUNDS", 2)
