"""How alike two pictures are: by an encoder's features, and pixel by pixel."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

SMALLEST = 6  # pixels a side: the window of SSIM reaches 5 beyond a pixel, and is mirrored there


def token_cosines(features: Tensor, others: Tensor) -> list[float]:
    """Of each picture the mean over its tokens of the cosine; both are [B, tokens, C]."""
    return F.cosine_similarity(features.float(), others.float(), dim=-1).mean(-1).tolist()


def pixels_of(pictures: list[Image.Image]) -> Tensor:
    """[B, 3, H, W] from 0 to 1, float64, of RGB pictures of one size.

    In fp32 the variances that SSIM takes differences of would be rounding where a picture is flat.
    """
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).double() / 255


def peak_signal_to_noise(pixels: Tensor, others: Tensor) -> list[float]:
    """PSNR of each picture in dB, infinite where nothing differs; both [B, 3, H, W] from 0 to 1."""
    return peak_signal_noise_ratio(
        pixels, others, data_range=1.0, reduction="none", dim=(1, 2, 3)
    ).tolist()


def structural_similarity(pixels: Tensor, others: Tensor) -> list[float]:
    """SSIM of each picture, 1 where nothing differs; both [B, 3, H, W] from 0 to 1, `SMALLEST`
    pixels a side or more."""
    ssim = structural_similarity_index_measure(pixels, others, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return ssim.reshape(-1).tolist()


class ShuffledPairs:
    """Each drawing beside a picture that it is not of: the one before it, and the first drawing
    beside the last picture. What a decoder that ignores its features would reach."""

    def __init__(self):
        self._cosines: list[float] = []
        self._first_drawn: Tensor | None = None  # [1, tokens, C]
        self._last_real: Tensor | None = None

    def add(self, drawn: Tensor, real: Tensor) -> None:
        """Features [B, tokens, C] of the next drawings, and of the pictures that they are of."""
        before = real[:-1]
        if self._last_real is None:
            self._first_drawn, drawn = drawn[:1], drawn[1:]
        else:
            before = torch.cat([self._last_real, before])
        self._cosines += token_cosines(drawn, before)
        self._last_real = real[-1:]

    def cosines(self) -> list[float]:
        """One a drawing; none where there are not two pictures."""
        if not self._cosines or self._first_drawn is None or self._last_real is None:
            return []
        return [*self._cosines, *token_cosines(self._first_drawn, self._last_real)]
