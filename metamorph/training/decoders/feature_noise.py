"""Noise on features, from which decoders of both kinds learn to draw predicted ones, too."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
