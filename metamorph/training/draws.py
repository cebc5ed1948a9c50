"""Random numbers of a training step on pictures, which do not depend on who computes a picture."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Numbers for the pictures of some lanes in one step, each from a generator of its own: a
    process draws no more than it computes, and a micro-batch no more than it holds."""

    def __init__(self, seed: int, step: int, lanes: Sequence[int]):
        self.step = step  # how many were done before
        mixed = [np.random.SeedSequence((seed, step, lane)) for lane in lanes]
        seeds = [int(sequence.generate_state(1, np.uint32)[0]) for sequence in mixed]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, distribution: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """A tensor of this shape on the CPU, whose first dimension is the pictures.

        `distribution`: one of torch's functions of a shape and a generator, such as `torch.randn`.
        """
        count, *rest = shape
        if count != len(self.generators):
            raise ValueError(f"expected numbers for {len(self.generators)} pictures, got {count}")
        return torch.stack([distribution(rest, generator=own) for own in self.generators])
