"""Small pure parts of training."""

import time

import pytest
import torch
import torch.nn.functional as F

from metamorph.config import TrainingConfig
from metamorph.monitor.telemetry import MeanBaseline, Meter
from metamorph.training.optimizer import learning_rate


def test_the_rate_warms_up_peaks_and_ends_near_zero():
    training = TrainingConfig(steps=100, learning_rate=2.0, warmup_ratio=0.1)
    rates = [learning_rate(step, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == max(rates) == pytest.approx(2.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert rates[55] == pytest.approx(1.0, abs=0.02)  # half way down the cosine


def test_no_warm_up_starts_at_the_peak():
    training = TrainingConfig(steps=10, learning_rate=1.0, warmup_ratio=0.0)
    assert learning_rate(0, training) == 1.0


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
