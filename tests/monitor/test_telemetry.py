"""Baseline, meters and peaks, without a run."""

import time

import torch
import torch.nn.functional as F

from metamorph.monitor.telemetry import MeanBaseline, Meter


def test_mean_baseline_is_the_cosine_of_the_mean_per_token_position():
    generator = torch.Generator().manual_seed(0)
    first = F.normalize(torch.randn(50, 3, 8, generator=generator) + 1, dim=-1)
    second = F.normalize(torch.randn(20, 3, 8, generator=generator) + 1, dim=-1)
    baseline = MeanBaseline(3, 8)
    assert baseline.score(first).item() == 0  # it knows nothing yet
    baseline.total += first.sum(0)
    mean = F.normalize(first.mean(0), dim=-1)
    expected = F.cosine_similarity(second, mean.expand_as(second), dim=-1).mean()
    torch.testing.assert_close(baseline.score(second), expected)


def test_meter_counts_tokens_per_elapsed_second():
    meter = Meter()
    meter.add(tokens=900)
    time.sleep(0.05)
    assert 0 < meter.read()["tokens"] < 900 / 0.05
    assert meter.read()["tokens"] == 0  # since the last reading
