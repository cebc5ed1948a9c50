"""The visual loss, alone and with the layer before it, forward and backward, beside every peer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.providers import Compute, Provider, compiled, gpu_package, ours
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.trials import (
    INPUT_SETS,
    Inputs,
    Trial,
    forward,
    forward_and_backward,
    input_sets,
    largest_error,
)
from bench.harness.verification import LARGEST_ERROR
from metamorph_kernels import cosine_loss, linear_cosine_loss, reference

FORWARD, BACKWARD, WEIGHTED = (
    "cosine loss, forward",
    "cosine loss, forward and backward",
    "half a cosine loss, forward and backward",
)
LINEAR = "linear cosine loss, forward and backward"
BARE_PRODUCTS = "the three products, no loss"


@dataclass(frozen=True)
class CosineCase:
    """Rows of predictions and targets; `in_graph` where kernels are shorter than their launch."""

    rows: int
    columns: int = 1152
    dtype: torch.dtype = torch.bfloat16
    in_graph: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        return f"cosine-{self.rows}"

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.columns}, {str(self.dtype).removeprefix('torch.')}"

    def least_bytes(self, operation: str) -> int:
        """Prediction and target read once and, with a backward, the gradient written once."""
        tensors = 2 if operation == FORWARD else 3
        return tensors * self.rows * self.columns * self.dtype.itemsize

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        """Predictions at about 45 degrees to their targets."""
        normal = _normal(self.dtype, device, seed)
        target = normal(self.rows, self.columns)
        prediction = target + normal(self.rows, self.columns)
        return Inputs((prediction.requires_grad_(),), (target,))

    def run(self, device: torch.device) -> list[Result]:
        sets = input_sets(device, self.least_bytes(FORWARD), self.in_graph)
        inputs = [self.inputs(device, seed) for seed in range(sets)]
        results = []
        for operation, call, wrapped in (
            (FORWARD, forward, lambda loss: loss),
            (BACKWARD, forward_and_backward, lambda loss: loss),
            (WEIGHTED, forward_and_backward, _halved),
        ):
            exact = call(wrapped(reference.cosine_loss), inputs[0].double())
            plain = wrapped(plain_cosine)
            trial = Trial(operation, str(self), call, inputs, exact, plain, self.in_graph)
            providers = [provider.adapted(wrapped) for provider in COSINE_PROVIDERS]
            comparison = trial.comparison(providers, device)
            results += comparison.results(device, self.least_bytes(operation), "GB/s")
        return results


@dataclass(frozen=True)
class LinearCosineCase:
    """States [N, H] to predictions [N, C], and the loss of these."""

    rows: int
    width: int = 4096
    columns: int = 1152
    dtype: torch.dtype = torch.bfloat16
    quick: bool = False

    @property
    def name(self) -> str:
        return f"linear-cosine-{self.rows}"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.rows} rows, {self.width} to {self.columns}, {dtype}"

    @property
    def flops(self) -> int:
        """Of three products: the prediction, and the gradients of states and weight."""
        return 3 * 2 * self.rows * self.width * self.columns

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        """Predictions at about 45 degrees to their targets."""
        normal = _normal(self.dtype, device, seed)
        x, bias = normal(self.rows, self.width), normal(self.columns)
        weight = normal(self.columns, self.width) / self.width**0.5
        target = F.linear(x, weight, bias) + normal(self.rows, self.columns)
        return Inputs(tuple(leaf.requires_grad_() for leaf in (x, weight, bias)), (target,))

    def run(self, device: torch.device) -> list[Result]:
        inputs = [self.inputs(device, seed) for seed in range(INPUT_SETS)]
        exact = forward_and_backward(reference.linear_cosine_loss, inputs[0].double())
        plain = partial(_of_linear, plain_cosine)
        trial = Trial(LINEAR, str(self), forward_and_backward, inputs, exact, plain)
        comparison = trial.comparison(LINEAR_PROVIDERS, device)
        comparison.add(BARE_PRODUCTS, partial(bare_products, inputs))
        return comparison.results(device, self.flops, "TFLOP/s")


def cases(device_type: str) -> list[CosineCase | LinearCosineCase]:
    """All of a device; a CPU has tiny ones in float32, to rehearse."""
    if device_type == "cpu":
        small = {"columns": 96, "dtype": torch.float32, "quick": True}
        return [
            CosineCase(512, **small),
            CosineCase(64, in_graph=True, **small),
            LinearCosineCase(512, width=256, **small),
        ]
    return [
        CosineCase(65536, quick=True),
        LinearCosineCase(16384, quick=True),
        CosineCase(4096, in_graph=True),
        CosineCase(64, in_graph=True),
        LinearCosineCase(4096),
    ]


def plain_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """In the dtype of its inputs throughout: the yardstick."""
    return (1 - F.cosine_similarity(prediction, target, dim=-1)).mean()


def _eager(prediction: Tensor, target: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(prediction.float(), target.float(), dim=-1)).mean()


def _of_linear(loss: Compute, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return loss(F.linear(x, weight, bias), target)


def _halved(loss: Compute) -> Compute:
    """As part of a sum of losses. Without it the cotangent is 1, for which some skip a pass."""
    return lambda *tensors: 0.5 * loss(*tensors)


def _liger(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Distillation from a teacher that passes the target through, without the hard loss."""
    from liger_kernel.chunked_loss import LigerFusedLinearCosineSimilarityLoss

    loss = LigerFusedLinearCosineSimilarityLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0
    )
    labels, teacher = _teacher(*target.shape, target.dtype, target.device)
    return loss(x, weight, target, teacher, labels, bias)


@cache
def _teacher(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Labels of rows that all count, and the identity [C, C]."""
    labels = torch.zeros(rows, dtype=torch.int64, device=device)
    return labels, torch.eye(columns, dtype=dtype, device=device)


def bare_products(inputs: list[Inputs]) -> Candidate:
    """The matrix products of forward and backward with nothing between them.

    They are verified themselves, and held to the fixed limit: plain products are the yardstick.
    """

    def products(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.mm(x, weight.t()), torch.mm(gradient, weight), torch.mm(gradient.t(), x)

    def arguments(repeat: int) -> tuple[Tensor, Tensor, Tensor]:
        each = inputs[repeat % len(inputs)]
        x, weight, _ = each.leaves
        return x.detach(), weight.detach(), *each.constants  # the target, in place of a gradient

    exact = products(*(tensor.double() for tensor in arguments(0)))
    error = largest_error(products(*arguments(0)), exact)
    return Candidate(products, arguments, error, LARGEST_ERROR[inputs[0].precision])


def _normal(dtype: torch.dtype, device: torch.device, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=dtype, device=device)


COSINE_PROVIDERS = [
    *ours(cosine_loss, "triton", "cuda", "torch"),
    Provider("eager", _eager),
    compiled(_eager),
]
LINEAR_PROVIDERS = [
    *ours(linear_cosine_loss, "triton", "cuda", "torch"),
    Provider("eager", partial(_of_linear, _eager)),
    compiled(partial(_of_linear, _eager)),
    Provider("Liger distillation", _liger, gpu_package("liger_kernel.chunked_loss")),
]
