"""Learning rate over a run: linear warm-up, then a cosine to zero (paper appendix A)."""

import math

from metamorph.config import TrainingConfig


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Rate of optimizer step ``step``, counted from 0."""
    steps, peak = training.steps, training.learning_rate
    warmup = math.ceil(steps * training.warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
