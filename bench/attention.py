"""Interval attention of packed rows, forward and backward, beside every peer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from bench import peers
from bench.comparison import Comparison
from bench.documents import PackedRow, equal_row, packed_row
from bench.results import Result
from bench.timing import Candidate
from bench.verification import error_bound, exact_attention, relative_error
from metamorph_kernels import Intervals

INPUT_SETS = 2
BACKWARD_WORK = 2.5  # five matrix products where the forward has two
OPERATIONS = FORWARD, BACKWARD = "attention forward", "attention backward"
MASK = "block mask"


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

    @property
    def row(self) -> PackedRow:
        if self.equal:
            return equal_row(self.tokens, self.equal)
        return packed_row(self.tokens, self.mask)

    def run(self, device: torch.device) -> list[Result]:
        """Verify all providers in the heads of two key heads, then time forward and backward."""
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
    quick = {("spans", 8192), ("spans", 32768), ("documents", 8192), ("one document", 8192)}
    wide = [
        Case(mask, tokens, quick=(mask, tokens) in quick)
        for tokens in (8192, 32768, 4096, 16384)  # the most telling first: time may run out
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


def flops(row: PackedRow, query_heads: int, head_dim: int) -> int:
    """Of the forward, unmasked work only: two products of two FLOPs an element of each pair."""
    return 4 * head_dim * query_heads * row.visible_pairs


class _Trial:
    """All providers on one row, judged in the heads of the first and the last key head."""

    def __init__(self, case: Case, device: torch.device):
        self.case, self.device = case, device
        self.row = case.row
        self.inputs = [Inputs.random(case, device, seed) for seed in range(INPUT_SETS)]
        group = case.query_heads // case.key_heads
        self.key_heads = sorted({0, case.key_heads - 1})
        self.query_heads = [head * group + i for head in self.key_heads for i in range(group)]
        q, k, v = self.inputs[0].leaves
        self.exact = exact_attention(
            q[:, self.query_heads],
            k[:, self.key_heads],
            v[:, self.key_heads],
            self.inputs[0].out_gradient[:, self.query_heads],
            self.row.intervals(device),
        )
        self.bounds = {}

    def run(self) -> list[Result]:
        forward, backward = (Comparison(operation, str(self.case)) for operation in OPERATIONS)
        for provider in peers.PROVIDERS:
            absent = provider.reason(self.row, self.device)
            untrained = absent or provider.no_backward(self.device)
            attend = cache(partial(provider.prepare, self.row, self.device))
            forward.add(
                provider.name,
                partial(self._candidate, FORWARD, attend, provider.float8, untrained is None),
                absent,
            )
            backward.add(
                provider.name,
                partial(self._candidate, BACKWARD, attend, provider.float8, True),
                untrained,
            )
        work = flops(self.row, self.case.query_heads, self.case.head_dim)
        return [
            *forward.results(self.device, work, "TFLOP/s"),
            *backward.results(self.device, BACKWARD_WORK * work, "TFLOP/s"),
            *mask_results(self.case, self.row, self.device),
        ]

    def _candidate(
        self, operation: str, prepared: Callable[[], peers.Attend], float8: bool, trained: bool
    ) -> Candidate:
        run, arguments = self._calls(operation, prepared(), trained)
        error = self._error(run(*arguments(0)))
        return Candidate(run, arguments, error, self._bound(operation, float8), float8=float8)

    def _calls(self, operation: str, attend: peers.Attend, trained: bool) -> tuple:
        """What to run, and its arguments in each repeat."""

        def forward_arguments(repeat):
            leaves = self.inputs[repeat % INPUT_SETS].leaves
            return leaves if trained else tuple(leaf.detach() for leaf in leaves)

        def backward_arguments(repeat):
            inputs = self.inputs[repeat % INPUT_SETS]
            # A forward of its own each time: compiled peers may use up what it saved.
            return attend(*inputs.leaves), inputs.leaves, inputs.out_gradient

        if operation == FORWARD:
            return attend, forward_arguments
        return torch.autograd.grad, backward_arguments

    def _error(self, actual: Tensor | tuple[Tensor, ...]) -> float:
        """The relative error of out, or the largest of those of dq, dk and dv."""
        if isinstance(actual, Tensor):
            return relative_error(actual[:, self.query_heads], self.exact[0])
        heads = (self.query_heads, self.key_heads, self.key_heads)
        errors = [
            relative_error(gradient[:, chosen], exact)
            for gradient, chosen, exact in zip(actual, heads, self.exact[1:], strict=True)
        ]
        return torch.tensor(errors).max().item()  # unlike max(), it does not lose a NaN

    def _bound(self, operation: str, float8: bool) -> float:
        if (operation, float8) not in self.bounds:
            prepare = peers.float8_in_torch if float8 else peers.in_torch
            run, arguments = self._calls(operation, prepare(self.row, self.device), not float8)
            precision = "float8" if float8 else str(self.case.dtype).removeprefix("torch.")
            self.bounds[operation, float8] = error_bound(self._error(run(*arguments(0))), precision)
        return self.bounds[operation, float8]


def mask_results(case: Case, row: PackedRow, device: torch.device) -> list[Result]:
    """What the mask costs, once a step: ours, and FlexAttention's built both ways."""
    intervals = row.intervals(device)
    build = peers.block_mask_builder(row, device)

    def ours():
        surplus = (intervals.row_end - intervals.row_start).sum().item() - row.visible_pairs
        return Candidate(row.intervals, lambda _: (device,), abs(surplus), bound=0)

    def flex(create):
        blocks = build(create)
        expected = visible_blocks(intervals, blocks.BLOCK_SIZE[0])
        differing = (blocks.to_dense()[0, 0].bool() != expected).sum().item()
        return Candidate(build, lambda _: (create,), differing, bound=0)

    comparison = Comparison(MASK, str(case))
    comparison.add("ours", ours)
    comparison.add("FlexAttention", partial(flex, create_block_mask))
    comparison.add(
        "FlexAttention compiled",
        lambda: flex(torch.compile(create_block_mask)),
        None if device.type == "cuda" else "needs a GPU",
    )
    return comparison.results(device)


def visible_blocks(intervals: Intervals, size: int) -> Tensor:
    """bool [blocks, blocks]: does any query of a block see any key of another?

    Neighbouring intervals touch or overlap, so the first and last query of a block bound it.
    """
    tokens = len(intervals.row_start)
    first = torch.arange(0, tokens, size, device=intervals.row_start.device)
    last = (first + size - 1).clamp(max=tokens - 1)
    starts, ends = intervals.row_start[first, None], intervals.row_end[last, None]
    return (first < ends) & (first + size > starts)
