"""The learning rate over a run."""

import pytest

from metamorph.config import TrainingConfig
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
