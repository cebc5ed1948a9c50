"""Looking at a model in training without changing it."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from metamorph.training.parallel import release


@contextmanager
def measuring(step: nn.Module) -> Generator[None]:
    """For as long as the body runs, `step`, the module whose forward is that of a training step,
    computes without gradients and drops nothing; afterwards it is as before, shards included."""
    modules = [module for module in step.modules() if module.training]
    step.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in modules:
            module.training = True
        release(step)
