"""Random numbers of a training step on pictures, which do not depend on who computes a picture; and
noise of them for features."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
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


def draw_noise(shape: Sequence[int], most: float, draw: Callable[..., Tensor]) -> Tensor:
    """Noise for features of shape [B, tokens, C], on the CPU.

    That of a picture has a length of 0 to `most` beside the 1 of a feature, drawn for each picture:
    so much as predicted features are off, a decoder learns to draw from. At a length of s the
    cosine to the feature without noise is about 1 / sqrt(1 + s^2), 0.89 at 0.5.

    `draw(distribution, shape)` gives random numbers on the CPU.
    """
    noise = draw(torch.randn, shape) / shape[-1] ** 0.5
    return noise * (most * draw(torch.rand, (shape[0], 1, 1)))


def add_noise(features: Tensor, noise: Tensor) -> Tensor:
    """Unit features [B, tokens, C] with noise of that shape, of unit length again."""
    return F.normalize(features + noise.to(features), dim=-1)
