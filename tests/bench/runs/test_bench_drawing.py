import sys

import pytest
import torch

from bench.runs import drawing

CPU = torch.device("cpu")
TINY = drawing.Case(1, 2, toy=True)
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_ours_and_diffusers_draw_the_same_picture_and_are_timed():
    results = TINY.run(CPU)
    lines = {line.provider: line for line in results if line.timing is not None}
    assert list(lines) == ["ours fp32", "diffusers fp32"]
    assert all(line.error <= line.bound == 1 for line in lines.values())
    absent = {line.reason for line in results if line.status == "absent"}
    assert absent == {"bfloat16 on a GPU only"}
    assert len(results) == len(drawing.WAYS) + 2  # pictures a second


def test_pictures_have_something_to_compare():
    assert drawing._Trial(TINY, CPU).exact.std() > 10


def test_another_picture_is_not_timed(monkeypatch):
    class Wrong(drawing._Trial):
        def __init__(self, case, device):
            super().__init__(case, device)
            self.features = -self.features

    monkeypatch.setattr(drawing, "_Trial", Wrong)
    ours, *_ = [line for line in TINY.run(CPU) if line.provider == "ours fp32"]
    assert ours.status == "failed" and ours.reason.startswith("wrong: error")


def test_a_machine_without_diffusers_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    lines = TINY.run(CPU)
    assert {line.reason for line in lines} == {"diffusers is not installed, which the model needs"}
    assert [line.provider for line in lines] == list(drawing.WAYS)
