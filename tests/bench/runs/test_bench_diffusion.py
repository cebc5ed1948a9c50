import sys

import pytest
import torch
import torch.nn.functional as F

from bench.runs import diffusion

CPU = torch.device("cpu")
TINY = diffusion.Case(1)
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_an_entry_verifies_and_times_all_that_runs_here():
    results = TINY.run(CPU)
    for operation in (diffusion.SAMPLING, diffusion.TRAINING):
        absent, line, speed = [r for r in results if r.operation == operation]
        assert absent.reason == "bfloat16 on a GPU only"
        assert line.provider == "ours fp32" and line.status == "ok" and line.rate > 0, line
        assert speed.reason.endswith(" pictures/s")


def test_a_wrong_picture_and_a_wrong_step_are_not_timed(monkeypatch):
    class Wrong(diffusion._Trial):
        def __init__(self, case, device):
            super().__init__(case, device)
            self.features = -self.features
            self.trainer.dropout = 1.0  # no picture keeps its condition

    monkeypatch.setattr(diffusion, "_Trial", Wrong)
    found = [line for line in TINY.run(CPU) if line.provider == "ours fp32"]
    assert [line.status for line in found] == ["failed", "failed"]
    assert all(line.reason.startswith("wrong: error") for line in found)


def test_a_machine_without_diffusers_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    lines = TINY.run(CPU)
    assert {line.reason for line in lines} == {"diffusers is not installed, which the model needs"}
    assert [line.provider for line in lines] == ["ours fp32", "ours bf16"] * 2


def test_work_is_counted_from_shapes():
    def call():
        image = torch.ones(1, 3, 8, 8, requires_grad=True)
        out = F.conv2d(image, torch.ones(5, 3, 3, 3), padding=1).flatten(2)  # [1, 5, 64]
        queries = out[:, None]
        return F.scaled_dot_product_attention(queries, queries, queries).sum().backward()

    # A product for each tap of each filter at each place, for the output and again for the input;
    # attention has two products forward and four backward.
    convolution, attention = 2 * 5 * 3 * 9 * 64, 2 * 5 * 5 * 64
    _, flops = diffusion.counted(call)
    assert flops == 2 * convolution + 6 * attention
