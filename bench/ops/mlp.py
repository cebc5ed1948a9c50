"""Linear, GELU, linear, with biases: the projector and the vision head, beside bare products."""

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.providers import Compute, Provider, backend_absence, compiled, gpu_package, ours
from bench.harness.results import Result
from bench.harness.timing import Candidate
from bench.harness.trials import Inputs, Results, Trial, forward, input_sets, largest_error
from bench.harness.verification import LARGEST_ERROR
from metamorph_kernels import mlp_gelu, mlp_gelu_fp8, reference

FORWARD, BACKWARD = "MLP, forward", "MLP, forward and backward"
BARE_PRODUCTS = "the products, no bias or GELU"


@dataclass(frozen=True)
class Case:
    """Rows [N, I] to [N, F] to [N, O]; `in_graph` where kernels are shorter than their launch."""

    rows: int
    into: int = 1152
    hidden: int = 4096
    out: int = 4096
    dtype: torch.dtype = torch.bfloat16
    in_graph: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        return f"mlp-{self.rows}-{self.into}"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.rows} rows, {self.into} to {self.hidden} to {self.out}, {dtype}"

    @property
    def flops(self) -> int:
        """Of the forward: two products."""
        return 2 * self.rows * self.hidden * (self.into + self.out)

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        """x, w1, b1, w2 and b2, and the gradient of the output."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            options = {"generator": generator, "dtype": self.dtype, "device": device}
            return torch.randn(shape, **options) * scale

        leaves = (
            normal(self.rows, self.into),
            normal(self.hidden, self.into, scale=self.into**-0.5),
            normal(self.hidden),
            normal(self.out, self.hidden, scale=self.hidden**-0.5),
            normal(self.out),
        )
        return Inputs(
            tuple(leaf.requires_grad_() for leaf in leaves), (normal(self.rows, self.out),)
        )

    def run(self, device: torch.device) -> list[Result]:
        sets = input_sets(device, 2 * self.hidden * (self.into + self.out), self.in_graph)
        inputs = [self.inputs(device, seed) for seed in range(sets)]
        results = []
        for operation, call, products, work in (
            (FORWARD, forward, forward_products, self.flops),
            (BACKWARD, forward_and_gradients, all_products, 3 * self.flops),
        ):
            exact = call(of_leaves(reference.mlp_gelu), inputs[0].double())
            trial = Trial(operation, str(self), call, inputs, exact, plain_mlp, self.in_graph)
            comparison = trial.comparison(PROVIDERS, device)
            precision = "float8" if operation == FORWARD else "float8 training"
            float8 = replace(trial, plain=FLOAT8_IN_TORCH, precision=precision)
            float8.join(comparison, FLOAT8_PROVIDERS, device)
            simpler = [without_biases(each) for each in inputs]
            exact = call(of_leaves(tanh_mlp), simpler[0].double())
            quack = replace(trial, inputs=simpler, exact=exact, plain=of_leaves(tanh_mlp))
            quack.join(comparison, [QUACK], device)
            if not self.in_graph:
                comparison.add(BARE_PRODUCTS, partial(bare_products, products, inputs))
            results += comparison.results(device, work, "TFLOP/s")
        return results


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has a tiny one in float32, to rehearse."""
    if device_type == "cpu":
        return [Case(64, into=32, hidden=96, out=48, dtype=torch.float32, quick=True)]
    projector = [Case(16384, quick=True), Case(4096), Case(65536), Case(64, in_graph=True)]
    vision_head = {"into": 4096, "out": 1152}
    return [*projector, Case(16384, **vision_head), Case(4096, **vision_head)]


def forward_and_gradients(compute: Compute, inputs: Inputs) -> Results:
    out = compute(*inputs.leaves, *inputs.constants)
    return (out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.constants))


def of_leaves(compute: Compute) -> Compute:
    """Without the gradient of the output, which comes last."""
    return lambda *tensors: compute(*tensors[:-1])


def plain_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, _: Tensor) -> Tensor:
    """A provider, and the yardstick."""
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def without_biases(inputs: Inputs) -> Inputs:
    x, w1, _, w2, _ = inputs.leaves
    return Inputs((x, w1, w2), inputs.constants)


def tanh_mlp(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """What QuACK fuses for training: no biases, and the GELU by tanh."""
    return F.linear(F.gelu(F.linear(x, w1), approximate="tanh"), w2)


def _quack(x: Tensor, w1: Tensor, w2: Tensor, _: Tensor) -> Tensor:
    from quack.mlp import mlp_func

    return mlp_func(x, w1, w2, activation="gelu_tanh_approx")


def forward_products(x: Tensor, w1: Tensor, w2: Tensor, _: Tensor) -> Results:
    return (torch.mm(torch.mm(x, w1.t()), w2.t()),)


def all_products(x: Tensor, w1: Tensor, w2: Tensor, gradient: Tensor) -> Results:
    hidden = torch.mm(x, w1.t())
    hidden_gradient = torch.mm(gradient, w2)
    return (
        torch.mm(hidden, w2.t()),
        torch.mm(hidden_gradient, w1),
        torch.mm(hidden_gradient.t(), x),
        torch.mm(gradient.t(), hidden),
    )


def bare_products(products: Compute, inputs: list[Inputs]) -> Candidate:
    """The matrix products of the MLP with nothing between them: what a linear one would cost.

    They are verified themselves, and held to the fixed limit: plain products are the yardstick.
    """

    def arguments(repeat: int) -> tuple[Tensor, ...]:
        each = inputs[repeat % len(inputs)]
        x, w1, _, w2, _ = (leaf.detach() for leaf in each.leaves)
        return x, w1, w2, *each.constants

    exact = products(*(tensor.double() for tensor in arguments(0)))
    error = largest_error(products(*arguments(0)), exact)
    return Candidate(products, arguments, error, LARGEST_ERROR[inputs[0].precision])


QUACK = Provider("QuACK, no biases, tanh GELU", _quack, gpu_package("quack.mlp"))
FLOAT8_IN_TORCH = of_leaves(partial(mlp_gelu_fp8, impl="torch"))
PROVIDERS = [
    *(provider.adapted(of_leaves) for provider in ours(mlp_gelu, "triton", "torch")),
    Provider(
        "ours triton, activation kept",
        of_leaves(partial(mlp_gelu, keep_activation=True, impl="triton")),
        backend_absence(mlp_gelu, "triton"),
    ),
    Provider("eager", plain_mlp),
    compiled(plain_mlp),
]
FLOAT8_PROVIDERS = [
    Provider(f"{p.name} float8", of_leaves(p.method), p.absence)
    for p in ours(mlp_gelu_fp8, "triton", "torch")
]
