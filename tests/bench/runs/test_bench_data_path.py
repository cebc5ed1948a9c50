"""The data path: the same samples, losses and gradients, however they are laid out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.runs import data_path
from bench.runs.data_path import PROVIDERS
from bench.runs.ladder import Encoder

CPU = torch.device("cpu")
[SHIPPED] = data_path.cases("cpu")
TINY = replace(
    SHIPPED, rows=1, row_length=1200, layers=1, hidden=32, intermediate=32, visual_width=16,
    encoder=Encoder(layers=1, heads=2, intermediate=32, image_size=64, patch_size=8),
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_every_layout_is_verified_and_timed():
    lines = TINY.run(CPU)
    timed = [line for line in lines if line.timing is not None]
    assert [line.provider for line in timed] == [provider.name for provider in PROVIDERS]
    speeds = [line.reason for line in lines if line.timing is None]
    assert len(speeds) == len(PROVIDERS)
    assert all(reason.endswith("useful tokens/s") for reason in speeds)


def test_a_step_that_loses_a_document_is_not_timed(monkeypatch):
    right = data_path._Trial._packed_rows

    def without_the_last(self, layout):
        rows = list(right(self, layout))
        return rows[:-1] if not layout.packed and layout.cached else rows

    monkeypatch.setattr(data_path._Trial, "_packed_rows", without_the_last)
    wrong = [line for line in TINY.run(CPU) if line.status == "failed"]
    assert [line.provider for line in wrong] == ["padded to the longest, cached"]


def test_padding_to_the_longest_more_than_doubles_the_tokens(tmp_path: Path):
    trial = data_path._Trial(TINY, tmp_path, CPU)
    padded, _, packed, _ = (list(trial._packed_rows(provider.method)) for provider in PROVIDERS)
    assert {i for row in trial.rows for i in row} and trial.tokens > 0.9 * 1200
    assert sum(len(row.token_ids) for row in padded) > 2 * trial.tokens
    assert sum(len(row.token_ids) for row in packed) == 1200
