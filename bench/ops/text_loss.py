"""The text loss of packed rows, few of whose tokens are supervised, beside every peer."""

from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness.providers import Compute, Provider, compiled, gpu_package, ours
from bench.harness.results import Result
from bench.harness.trials import INPUT_SETS, Inputs, Results, Trial, forward_and_backward
from metamorph_kernels import linear_cross_entropy
from metamorph_kernels.losses.cross_entropy import IGNORED

OPERATION = "text loss, forward and backward"
ROWS_AT_ONCE = 512  # bounds the logits held in float64
QUACK_CHUNK = 4096  # rows, the default of its function; its module has none


@dataclass(frozen=True)
class Case:
    """States [T, H], of which N predict a token of the vocabulary, and the output matrix [V, H]."""

    tokens: int
    supervised: int
    width: int = 4096
    vocabulary: int = 128_258  # Llama 3's 128,256 and the two that bound an image
    dtype: torch.dtype = torch.bfloat16
    quick: bool = False

    @property
    def name(self) -> str:
        return f"text-loss-{self.tokens}-{self.vocabulary}"

    def __str__(self) -> str:
        return (
            f"{self.supervised} of {self.tokens} tokens, {self.width} to {self.vocabulary}, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )

    @property
    def flops(self) -> int:
        """Of three products over the supervised rows alone: logits, gradients of states, weight."""
        return 3 * 2 * self.supervised * self.width * self.vocabulary

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        """States and weight; the labels of all rows, which rows are supervised, their labels."""
        generator = torch.Generator(device).manual_seed(seed)
        options = {"generator": generator, "device": device}
        x = torch.randn(self.tokens, self.width, dtype=self.dtype, **options)
        weight = torch.randn(self.vocabulary, self.width, dtype=self.dtype, **options)
        weight /= self.width**0.5
        rows = torch.randperm(self.tokens, **options)[: self.supervised].sort().values
        row_labels = torch.randint(self.vocabulary, (self.supervised,), **options)
        labels = torch.full((self.tokens,), IGNORED, device=device)
        labels[rows] = row_labels
        return Inputs((x.requires_grad_(), weight.requires_grad_()), (labels, rows, row_labels))

    def run(self, device: torch.device) -> list[Result]:
        inputs = [self.inputs(device, seed) for seed in range(INPUT_SETS)]
        trial = Trial(
            OPERATION,
            str(self),
            forward_and_backward,
            inputs,
            exact_text_loss(inputs[0]),
            plain=of_supervised_rows(plain_cross_entropy),
        )
        comparison = trial.comparison(PROVIDERS, device)
        return comparison.results(device, self.flops, "TFLOP/s")


def cases(device_type: str) -> list[Case]:
    """All of a device; a CPU has small ones in float32, the quick one to rehearse."""
    if device_type == "cpu":
        return [
            Case(256, 64, width=64, vocabulary=1000, dtype=torch.float32, quick=True),
            Case(1024, 256, width=256, vocabulary=8002, dtype=torch.float32),
        ]
    return [
        Case(16384, 4096, quick=True),
        Case(32768, 8192),
        # Rows of logits that are whole 16 bytes, as some kernels want them.
        Case(32768, 8192, vocabulary=128_256),
    ]


def exact_text_loss(inputs: Inputs) -> Results:
    """Loss and gradients in float64 by the definition, some rows at a time."""
    x, weight = (leaf.detach().double() for leaf in inputs.leaves)
    _, rows, row_labels = inputs.constants
    loss, x_gradient, weight_gradient = map(torch.zeros_like, (x[0, 0], x, weight))
    for some, labels in zip(rows.split(ROWS_AT_ONCE), row_labels.split(ROWS_AT_ONCE), strict=True):
        logits = x[some] @ weight.t()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        residual = logits.softmax(-1)
        residual[torch.arange(len(some), device=x.device), labels] -= 1
        x_gradient[some] = residual @ weight
        weight_gradient += residual.t() @ x[some]
    return tuple(total.div_(len(rows)) for total in (loss, x_gradient, weight_gradient))


def of_supervised_rows(loss: Compute) -> Compute:
    """As the training loop calls it: it knows the rows, and gathers them before the loss."""

    def compute(x: Tensor, weight: Tensor, labels: Tensor, rows: Tensor, row_labels: Tensor):
        return loss(x.index_select(0, rows), weight, row_labels)

    return compute


def of_all_rows(loss: Compute) -> Compute:
    """As most training loops call it: labels of -100 leave rows out."""

    def compute(x: Tensor, weight: Tensor, labels: Tensor, rows: Tensor, row_labels: Tensor):
        return loss(x, weight, labels)

    return compute


def plain_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """In the dtype of its inputs throughout: the yardstick."""
    return F.cross_entropy(F.linear(x, weight), labels)


def _eager(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), labels)


def _torch_chunked(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = nn.LinearCrossEntropyOptions()  # without any, whole logits
    return F.linear_cross_entropy(x, weight, labels, options=options)


def _torch_absence(device: torch.device) -> str | None:
    exists = hasattr(F, "linear_cross_entropy")
    return None if exists else f"torch {torch.__version__} has none"


def _liger(x: Tensor, weight: Tensor, labels: Tensor, **options: torch.dtype) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(x, weight, labels, **options)


def _cut(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Without its filter of small softmax entries, whose worth random logits do not show."""
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    return cut_cross_entropy(x, weight, labels, filter_eps=None)


def _quack(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Through its module, which falls back to whole logits for a vocabulary not divisible by 8."""
    module = _quack_module(weight.shape[1], weight.shape[0])
    return torch.func.functional_call(module, {"weight": weight}, (x, labels))


@cache
def _quack_module(width: int, vocabulary: int) -> nn.Module:
    from quack.linear_cross_entropy import LinearCrossEntropy

    return LinearCrossEntropy(width, vocabulary, chunk_size=QUACK_CHUNK, device="meta")


_LIGER, _QUACK = "liger_kernel.transformers.functional", "quack.linear_cross_entropy"
LOSSES = [
    *ours(linear_cross_entropy, "triton", "torch"),
    Provider("eager", _eager),
    compiled(_eager),
    Provider("torch linear_cross_entropy", _torch_chunked, _torch_absence),
    Provider("Liger", _liger, gpu_package(_LIGER)),
    Provider("Liger float32 sums", partial(_liger, accum_dtype=torch.float32), gpu_package(_LIGER)),
    Provider("cut-cross-entropy", _cut, gpu_package("cut_cross_entropy")),
    Provider("QuACK", _quack, gpu_package(_QUACK)),
]
PROVIDERS = [
    *(provider.adapted(of_supervised_rows) for provider in LOSSES),
    *(Provider(f"{p.name} on all rows", of_all_rows(p.method), p.absence) for p in LOSSES),
]
