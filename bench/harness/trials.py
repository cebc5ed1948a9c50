"""A function of tensors: its providers verified in float64, then timed on rotating inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.providers import Compute, Provider
from bench.harness.timing import Candidate, captured, flush_bytes
from bench.harness.verification import error_bound, relative_error

Results = tuple[Tensor, ...]
INPUT_SETS = 2


@dataclass(frozen=True)
class Inputs:
    """What a function takes: `leaves`, which need a gradient, then `constants`, which need none."""

    leaves: Results
    constants: Results = ()

    @property
    def precision(self) -> str:
        return str(self.leaves[0].dtype).removeprefix("torch.")

    def double(self) -> "Inputs":
        """The same numbers in float64; integers stay."""
        return Inputs(
            tuple(leaf.detach().double().requires_grad_() for leaf in self.leaves),
            tuple(x.double() if x.is_floating_point() else x for x in self.constants),
        )


def forward(compute: Compute, inputs: Inputs) -> Results:
    with torch.no_grad():
        return (compute(*inputs.leaves, *inputs.constants),)


def forward_and_backward(compute: Compute, inputs: Inputs) -> Results:
    """The loss and its gradients."""
    loss = compute(*inputs.leaves, *inputs.constants)
    return (loss.detach(), *torch.autograd.grad(loss, inputs.leaves))


def largest_error(actual: Results, exact: Results) -> float:
    """The largest of the relative errors of some results; a scalar or a vector is one row."""
    errors = [
        relative_error(*(torch.atleast_2d(result).flatten(0, -2) for result in pair))
        for pair in zip(actual, exact, strict=True)
    ]
    return torch.tensor(errors).max().item()  # unlike max(), it does not lose a NaN


def input_sets(device: torch.device, least_bytes: int, in_graph: bool) -> int:
    """How many inputs to rotate: what one graph reads together overflows the second-level cache."""
    if not in_graph or device.type != "cuda":
        return INPUT_SETS
    return max(INPUT_SETS, -(-flush_bytes(device) // least_bytes))


@dataclass(frozen=True)
class Trial:
    """One way to call all providers of a function: `forward` or `forward_and_backward`.

    `exact` are the results of the first inputs in float64. `plain` is PyTorch's own function in the
    dtype of the inputs throughout, the yardstick of every error, which `precision` limits.
    `in_graph` calls all inputs in one CUDA graph, for kernels shorter than their launch.
    """

    operation: str
    case: str
    call: Callable[[Compute, Inputs], Results]
    inputs: Sequence[Inputs]
    exact: Results
    plain: Compute
    in_graph: bool = False
    precision: str | None = None  # where it is not that of the inputs

    def comparison(
        self, providers: Sequence[Provider[Compute]], device: torch.device
    ) -> Comparison:
        """Of these providers, neither verified nor timed yet."""
        comparison = Comparison(self.operation, self.case)
        self.join(comparison, providers, device)
        return comparison

    def join(
        self, comparison: Comparison, providers: Sequence[Provider[Compute]], device: torch.device
    ) -> None:
        """Add these providers, held to this trial's yardstick, to a comparison."""
        plain_error = largest_error(self.call(self.plain, self.inputs[0]), self.exact)
        bound = error_bound(plain_error, self.precision or self.inputs[0].precision)
        for provider in providers:
            make = partial(self._candidate, provider.method, bound, device)
            comparison.add(provider.name, make, provider.absence(device))

    def _candidate(self, compute: Compute, bound: float, device: torch.device) -> Candidate:
        if self.in_graph:
            calls = [partial(self.call, compute, inputs) for inputs in self.inputs]
            run, outputs = captured(calls, device)
            run()
            error = largest_error(outputs[0], self.exact)
            return Candidate(run, lambda _: (), error, bound, len(calls), self._float8)

        def arguments(repeat: int) -> tuple:
            return compute, self.inputs[repeat % len(self.inputs)]

        error = largest_error(self.call(*arguments(0)), self.exact)
        return Candidate(self.call, arguments, error, bound, float8=self._float8)

    @property
    def _float8(self) -> bool:
        return (self.precision or "").startswith("float8")
