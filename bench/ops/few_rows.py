"""The few rows of a step of generation times a matrix of the model, on a CPU, beside PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.providers import Provider
from bench.harness.results import Result
from bench.harness.trials import Inputs, Trial, forward
from metamorph_kernels import cpp_absence, linear_cpp

OPERATION = "few rows times a matrix, forward"
SETS = 12  # matrices in turn: a step comes back to one after all others of the model


@dataclass(frozen=True)
class Case:
    """x [rows, into] times a matrix [out, into] of the quickstart's language model, float32."""

    layer: str
    into: int
    out: int
    rows: int = 16
    quick: bool = True

    @property
    def name(self) -> str:
        return f"linear-{self.rows}-{self.layer}"

    def __str__(self) -> str:
        return f"{self.rows} rows, {self.into} to {self.out}, float32"

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.into * self.out

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        """x, the matrix by columns, as an opened model stores it, and by rows."""
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn(self.rows, self.into, generator=generator, device=device)
        weight = torch.randn(self.out, self.into, generator=generator, device=device)
        return Inputs((x, weight.t().contiguous().t()), (weight,))

    def run(self, device: torch.device) -> list[Result]:
        inputs = [self.inputs(device, seed) for seed in range(SETS)]
        exact = forward(by_columns, inputs[0].double())
        trial = Trial(OPERATION, str(self), forward, inputs, exact, by_columns)
        return trial.comparison(PROVIDERS, device).results(device, self.flops, "TFLOP/s")


def cases(device_type: str) -> Sequence[Case]:
    """Those of a CPU: there is no such kernel for a GPU."""
    if device_type != "cpu":
        return ()
    return Case("qkv", 192, 320), Case("gate-up", 192, 1024), Case("down", 512, 192)


def in_cpp(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    return linear_cpp(x, columns)


def by_columns(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """A provider, and the yardstick."""
    return F.linear(x, columns)


def by_rows(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    return F.linear(x, rows)


PROVIDERS = [
    Provider("ours cpp", in_cpp, lambda device: cpp_absence(device.type)),
    Provider("torch, by columns", by_columns),
    Provider("torch, by rows", by_rows),
]
