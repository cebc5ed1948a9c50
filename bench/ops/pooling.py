"""Encoder tokens pooled to a smaller grid and normalised, beside plain and compiled PyTorch."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.providers import Provider, compiled, ours
from bench.harness.results import Result
from bench.harness.trials import INPUT_SETS, Inputs, Trial, forward
from metamorph_kernels import pool_normalize, reference
from metamorph_kernels.rows.pooling import tokens_read

OPERATION = "pool and normalise, forward"


@dataclass(frozen=True)
class Case:
    """Images of side x side tokens, each resized to grid x grid; the defaults are SigLIP's."""

    images: int
    side: int = 27
    grid: int = 8
    columns: int = 1152
    dtype: torch.dtype = torch.bfloat16
    quick: bool = True

    @property
    def name(self) -> str:
        return f"pool-{self.images}"

    def __str__(self) -> str:
        return (
            f"{self.images} images, {self.side} x {self.side} to {self.grid} x {self.grid} tokens "
            f"of {self.columns}, {str(self.dtype).removeprefix('torch.')}"
        )

    @property
    def least_bytes(self) -> int:
        """The tokens that have a weight read once, and those of the grid written once."""
        tokens = len(tokens_read(self.side, self.grid)) + self.grid**2
        return self.images * tokens * self.columns * self.dtype.itemsize

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        shape = self.images, self.side**2, self.columns
        options = {"generator": generator, "dtype": self.dtype, "device": device}
        return Inputs((torch.randn(shape, **options),))

    def run(self, device: torch.device) -> list[Result]:
        inputs = [self.inputs(device, seed) for seed in range(INPUT_SETS)]
        exact = forward(partial(reference.pool_normalize, grid=self.grid), inputs[0].double())
        plain = partial(plain_pool, grid=self.grid)
        trial = Trial(OPERATION, str(self), forward, inputs, exact, plain)
        providers = [
            provider.adapted(lambda pool: partial(pool, grid=self.grid)) for provider in PROVIDERS
        ]
        comparison = trial.comparison(providers, device)
        return comparison.results(device, self.least_bytes, "GB/s")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a tiny one in float32, to rehearse."""
    if device_type == "cpu":
        return [Case(4, columns=96, dtype=torch.float32)]
    return [Case(256)]


def plain_pool(features: Tensor, grid: int) -> Tensor:
    """In the dtype of its inputs throughout: a provider, and the yardstick."""
    side = round(features.shape[1] ** 0.5)
    image = features.transpose(1, 2).unflatten(2, (side, side))  # [B, C, side, side]
    pooled = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=False)
    return F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1)


PROVIDERS = [
    *ours(pool_normalize, "triton", "cuda", "torch"),
    Provider("eager", plain_pool),
    compiled(plain_pool),
]
