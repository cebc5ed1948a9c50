import pytest
import torch

from bench.harness.providers import Provider
from bench.ops import text_loss
from bench.runs import memory

CPU = torch.device("cpu")
LOSS = text_loss.Case(256, 64, width=8, vocabulary=32_002, dtype=torch.float32)
pytestmark = pytest.mark.usefixtures("few_repeats")


def test_each_provider_has_the_peak_of_its_own_process(monkeypatch):
    known = {provider.name: provider for provider in text_loss.PROVIDERS}
    unknown = Provider("nobody", known["eager"].method)
    names = ("ours triton", "ours torch", "eager on all rows")
    providers = [*(known[name] for name in names), unknown]
    monkeypatch.setattr(text_loss, "PROVIDERS", providers)
    found = {line.provider: line for line in memory.Case(LOSS).run(CPU)}
    assert found["ours triton"].status == "absent"
    assert found["nobody"].status == "failed"  # its process knows no such provider
    assert found["nobody"].reason.startswith("no peak: ['ValueError: ")

    # However much this process has held before.
    peaks = {name: found[name].timing.peak_gigabytes for name in names[1:]}
    logits = 4 * 256 * 32_002 / 1e9
    assert 2 * logits < peaks["eager on all rows"] < 4 * logits, peaks
    assert logits / 4 < peaks["ours torch"] < 0.4 * peaks["eager on all rows"], peaks


def test_only_a_cpu_needs_it():
    assert memory.cases("cuda") == []
    [case] = memory.cases("cpu")
    assert case.name == "memory-text-loss-256-32002"
