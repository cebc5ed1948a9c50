"""Interval attention of packed rows, forward and backward, beside every peer, and their plans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.harness.comparison import Comparison
from bench.harness.documents import SyntheticRow, equal_row, packed_row
from bench.harness.providers import Provider
from bench.harness.results import Result, timed
from bench.harness.timing import Candidate, Timing, until_done
from bench.harness.verification import error_bound, exact_attention, relative_error
from bench.ops import peers

INPUT_SETS = 2
OTHER_ROWS = 2  # whose plans are timed; the first row is that of the kernels
BACKWARD_WORK = 2.5  # five matrix products where the forward has two
OPERATIONS = FORWARD, BACKWARD, PLAN = (
    "attention forward",
    "attention backward",
    "plan for other lengths",
)
FIRST_PLAN = "first plan and call"


@dataclass(frozen=True)
class Case:
    """One row of tokens and the heads of a model; 32 and 8 heads of 128 are those of Llama 8B.

    `equal` causal documents take the place of a mask's own.
    """

    mask: str
    tokens: int
    head_dim: int = 128
    query_heads: int = 32
    key_heads: int = 8
    dtype: torch.dtype = torch.bfloat16
    quick: bool = False
    equal: int | None = None

    @property
    def name(self) -> str:
        documents = f"{self.equal}-equal-" if self.equal else ""
        mask = self.mask.replace(" ", "-")
        return f"attention-{documents}{mask}-{self.tokens}-{self.head_dim}"

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        mask = f"{self.equal} documents of equal length" if self.equal else self.mask
        return (
            f"{mask}, {self.tokens} tokens, {self.query_heads}:{self.key_heads} "
            f"heads of {self.head_dim}, {dtype}"
        )

    def row(self, seed: int) -> SyntheticRow:
        """Of other lengths for another seed; one document and equal ones have no other lengths."""
        if self.equal:
            return equal_row(self.tokens, self.equal)
        return packed_row(self.tokens, self.mask, seed)

    def run(self, device: torch.device) -> list[Result]:
        """Verify all providers in the heads of two key heads, then time kernels and plans."""
        if device.type == "cuda":
            torch.compiler.reset()  # another case of this process is no reason to recompile less
        return _Trial(self, device).run()


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has tiny ones in float32, to rehearse."""
    masks = ("spans", "documents", "one document")
    if device_type == "cpu":
        small = {"query_heads": 4, "key_heads": 2, "dtype": torch.float32, "quick": True}
        more = small | {"quick": False}
        lengths = [Case("spans", tokens, 64, **more) for tokens in (192, 768)]
        counts = [Case("documents", 384, 64, equal=count, **more) for count in (1, 4, 16)]
        return [Case(mask, 384, 64, **small) for mask in masks] + lengths + counts
    quick = {("spans", 8192), ("spans", 2048), ("spans", 32768)}
    quick |= {("documents", 8192), ("one document", 8192)}
    wide = [
        Case(mask, tokens, quick=(mask, tokens) in quick)
        for tokens in (8192, 2048, 32768, 4096, 16384)  # the most telling first: time may run out
        for mask in masks
    ]
    narrow = [Case(mask, 8192, head_dim=64, quick=mask == "spans") for mask in masks]
    counts = [Case("documents", 16384, equal=count) for count in (1, 8, 64, 512)]
    long = [Case("spans", tokens) for tokens in (65_536, 131_072)]
    return wide + narrow + counts + long


@dataclass(frozen=True)
class Inputs:
    """Leaves q [T, Hq, D], k and v [T, Hkv, D], and the gradient of the output [T, Hq, D]."""

    leaves: tuple[Tensor, Tensor, Tensor]
    out_gradient: Tensor

    @classmethod
    def random(cls, case: Case, device: torch.device, seed: int) -> "Inputs":
        generator = torch.Generator(device).manual_seed(seed)
        q, k, v, out_gradient = (
            torch.randn(
                case.tokens,
                heads,
                case.head_dim,
                generator=generator,
                dtype=case.dtype,
                device=device,
            )
            for heads in (case.query_heads, case.key_heads, case.key_heads, case.query_heads)
        )
        return cls(tuple(leaf.requires_grad_() for leaf in (q, k, v)), out_gradient)


def flops(row: SyntheticRow, query_heads: int, head_dim: int) -> int:
    """Of the forward, unmasked work only: two products of two FLOPs an element of each pair."""
    return 4 * head_dim * query_heads * row.visible_pairs


class _Judge:
    """Exact attention of a row, and how far off a result may be, in the heads of two key heads."""

    def __init__(self, case: Case, row: SyntheticRow, inputs: Inputs, device: torch.device):
        self.case, self.row, self.inputs = case, row, inputs
        group = case.query_heads // case.key_heads
        self.key_heads = sorted({0, case.key_heads - 1})
        self.query_heads = [head * group + i for head in self.key_heads for i in range(group)]
        q, k, v = inputs.leaves
        intervals = row.intervals(device)
        self.exact = exact_attention(
            q[:, self.query_heads],
            k[:, self.key_heads],
            v[:, self.key_heads],
            inputs.out_gradient[:, self.query_heads],
            intervals.row_start,
            intervals.row_end,
        )
        self.bounds = {}

    def error(self, actual: Tensor | tuple[Tensor, ...]) -> float:
        """The relative error of out, or the largest of those of dq, dk and dv."""
        if isinstance(actual, Tensor):
            return relative_error(actual[:, self.query_heads], self.exact[0])
        heads = (self.query_heads, self.key_heads, self.key_heads)
        errors = [
            relative_error(gradient[:, chosen], exact)
            for gradient, chosen, exact in zip(actual, heads, self.exact[1:], strict=True)
        ]
        return torch.tensor(errors).max().item()  # unlike max(), it does not lose a NaN

    def bound(self, operation: str, float8: bool) -> float:
        """By the error of plain PyTorch."""
        if (operation, float8) not in self.bounds:
            prepare = peers.float8_in_torch if float8 else peers.in_torch
            attend = prepare(self.row, self.inputs.leaves)
            run, arguments = _calls(operation, attend, [self.inputs], trained=not float8)
            precision = "float8" if float8 else str(self.case.dtype).removeprefix("torch.")
            self.bounds[operation, float8] = error_bound(self.error(run(*arguments(0))), precision)
        return self.bounds[operation, float8]


class _Trial:
    """All providers on one row, and the plans they make for others."""

    def __init__(self, case: Case, device: torch.device):
        self.case, self.device = case, device
        self.inputs = [Inputs.random(case, device, seed) for seed in range(INPUT_SETS)]
        self.leaves = self.inputs[0].leaves
        self.rows = [case.row(seed) for seed in range(1 + OTHER_ROWS)]
        self.judges = {row: _Judge(case, row, self.inputs[0], device) for row in set(self.rows)}
        self.attends = {}
        self.first_plans = []

    def run(self) -> list[Result]:
        forward, backward, plan = (Comparison(each, str(self.case)) for each in OPERATIONS)
        for provider in peers.PROVIDERS:
            method = provider.method
            absent = method.refusal(self.rows[0]) or provider.absence(self.device)
            untrained = absent or method.no_backward(self.device)
            forward.add(provider.name, partial(self._forward, provider, not untrained), absent)
            backward.add(provider.name, partial(self._backward, provider), untrained)
            plan.add(provider.name, partial(self._plan, provider, not untrained), absent)
        work = flops(self.rows[0], self.case.query_heads, self.case.head_dim)
        return [
            *forward.results(self.device, work, "TFLOP/s"),
            *backward.results(self.device, BACKWARD_WORK * work, "TFLOP/s"),
            *self.first_plans,
            *plan.results(self.device),
        ]

    def _forward(self, provider: Provider, trained: bool) -> Candidate:
        """Made by the very first call, whose time is that of the first plan."""
        judge = self.judges[self.rows[0]]
        bound = judge.bound(FORWARD, provider.method.float8)

        def plan_and_run():
            attend = self._attend(provider)
            run, arguments = _calls(FORWARD, attend, self.inputs, trained)
            return run, arguments, run(*arguments(0))

        (run, arguments, out), milliseconds = until_done(plan_and_run, self.device)
        candidate = Candidate(
            run, arguments, judge.error(out), bound, float8=provider.method.float8
        )
        if candidate.error <= bound:
            once = Timing([milliseconds], None, None)
            self.first_plans.append(
                timed(FIRST_PLAN, str(self.case), provider.name, candidate, once)
            )
        return candidate

    def _attend(self, provider: Provider) -> peers.Attend:
        """Of the first row, prepared once."""
        if provider.name not in self.attends:
            self.attends[provider.name] = provider.method.prepare(self.rows[0], self.leaves)
        return self.attends[provider.name]

    def _backward(self, provider: Provider) -> Candidate:
        judge = self.judges[self.rows[0]]
        run, arguments = _calls(BACKWARD, self._attend(provider), self.inputs, trained=True)
        error = judge.error(run(*arguments(0)))
        bound = judge.bound(BACKWARD, provider.method.float8)
        return Candidate(run, arguments, error, bound, float8=provider.method.float8)

    def _plan(self, provider: Provider, trained: bool) -> Candidate:
        """Of rows for each of which such a plan has given the right result."""
        others = self.rows[1:]
        errors, bounds = [], []
        for row in others:
            attend = provider.method.prepare(row, self.leaves)
            run, arguments = _calls(FORWARD, attend, self.inputs, trained)
            errors.append(self.judges[row].error(run(*arguments(0))))
            bounds.append(self.judges[row].bound(FORWARD, provider.method.float8))
        # Unlike that of max(), the largest of a tensor is a NaN where there is one.
        worst = (torch.tensor(errors) / torch.tensor(bounds)).argmax().item()
        return Candidate(
            provider.method.prepare,
            lambda repeat: (others[repeat % len(others)], self.leaves),
            errors[worst],
            bounds[worst],
            by_the_wall=True,
        )


def _calls(
    operation: str, attend: peers.Attend, inputs: Sequence[Inputs], trained: bool
) -> tuple[Callable, Callable[[int], tuple]]:
    """What to run, and its arguments in each repeat."""

    def forward_arguments(repeat):
        leaves = inputs[repeat % len(inputs)].leaves
        return leaves if trained else tuple(leaf.detach() for leaf in leaves)

    def backward_arguments(repeat):
        each = inputs[repeat % len(inputs)]
        # A forward of its own each time: compiled peers may use up what it saved.
        return attend(*each.leaves), each.leaves, each.out_gradient

    if operation == FORWARD:
        return attend, forward_arguments
    return torch.autograd.grad, backward_arguments
