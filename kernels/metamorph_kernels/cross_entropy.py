"""The output matrix together with the cross-entropy of its logits, a few rows at a time."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import check_integers, check_reduction, check_shape, same_dtype
from metamorph_kernels.backends import resolve

IGNORED = -100
LOGITS_AT_ONCE = 2**26  # 256 MiB in float32


def linear_cross_entropy(
    x: Tensor, weight: Tensor, labels: Tensor, *, reduction: str = "mean", impl: str = "auto"
) -> Tensor:
    """Cross-entropy of the logits x weight^T, the text loss of MetaMorph (arXiv 2412.14164).

    x [N, H] and weight [V, H] in one of float64, float32, bfloat16, float16, or under autocast;
    labels int64 [N] in 0..V-1, or -100 for a row that has loss 0 and does not count in the mean.
    Result float32, or float64 where x is: [N] for "none", a scalar for "sum" and "mean", which is
    exactly 0 where no row counts. Logits are float32, and computed again in the backward, so no
    more than `LOGITS_AT_ONCE` of them (or one row) ever exist; the weight gradient adds up in
    float32.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction or
    `impl`, and in eager mode on the CPU for a label out of range. On a GPU such a label is not
    read on the host: it stops at PyTorch's device-side assert.
    """
    check_reduction(reduction)
    x, weight = same_dtype(x=x, weight=weight)
    check_shape("x", x, "N, H", None, None)
    check_shape("weight", weight, "V, H", None, x.shape[1])
    check_integers("labels", labels, (torch.int64,), x.device)
    check_shape("labels", labels, "N", x.shape[0])
    resolve("linear_cross_entropy", impl, x)
    if weight.shape[0] == 0:
        raise ValueError(f"weight: expected at least one class, got {list(weight.shape)}")
    counted = labels != IGNORED
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = labels[counted & ((labels < 0) | (labels >= weight.shape[0]))]
        if len(outside):
            raise ValueError(
                f"labels: expected 0 to {weight.shape[0] - 1} or {IGNORED}, got {outside[0].item()}"
            )

    losses = _LinearCrossEntropy.apply(x, weight, labels.where(counted, 0), counted)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / counted.sum().clamp(min=1)


class LinearCrossEntropy(nn.Module):
    """An output matrix, `weight` [V, H], that returns `linear_cross_entropy` of its logits."""

    def __init__(
        self,
        in_features: int,
        vocabulary: int,
        *,
        reduction: str = "mean",
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        linear = nn.Linear(in_features, vocabulary, bias=False, device=device, dtype=dtype)
        self.weight = linear.weight
        self.reduction = reduction
        self.impl = impl

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return linear_cross_entropy(
            x, self.weight, labels, reduction=self.reduction, impl=self.impl
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        rows = max(LOGITS_AT_ONCE // weight.shape[0], 1)
        losses, log_sums = [], []
        for x_rows, label_rows in zip(x.split(rows), labels.split(rows), strict=True):
            logits = _wide_product(x_rows, weight.t())  # [rows, V]
            log_sums.append(logits.logsumexp(-1))
            losses.append(log_sums[-1] - logits.gather(1, label_rows[:, None])[:, 0])
        log_sum = torch.cat(log_sums)
        ctx.rows = rows
        ctx.save_for_backward(x, weight, labels, counted, log_sum)
        return torch.cat(losses).where(counted, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, labels, counted, log_sum = ctx.saved_tensors
        wants_x, wants_weight, _, _ = ctx.needs_input_grad
        gradient = gradient.where(counted, 0)
        x_gradients = []
        weight_gradient = None
        if wants_weight:
            weight_gradient = torch.zeros_like(weight, dtype=gradient.dtype)
        chunks = (tensor.split(ctx.rows) for tensor in (x, labels, log_sum, gradient))
        for x_rows, label_rows, log_sum_rows, gradient_rows in zip(*chunks, strict=True):
            residual = _wide_product(x_rows, weight.t())  # [rows, V]
            residual.sub_(log_sum_rows[:, None]).exp_()
            label_rows = label_rows[:, None]
            residual.scatter_(1, label_rows, residual.gather(1, label_rows) - 1)
            residual.mul_(gradient_rows[:, None])
            if wants_x:
                x_gradients.append(_wide_product(residual, weight).to(x.dtype))
            if wants_weight:
                weight_gradient.add_(_wide_product(residual.t(), x_rows))
        return (
            torch.cat(x_gradients) if wants_x else None,
            weight_gradient.to(weight.dtype) if wants_weight else None,
            None,
            None,
        )


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32 or wider; where b is in half precision, the GPU multiplies in it."""
    with torch.autocast(b.device.type, enabled=False):
        if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
        wide = torch.promote_types(b.dtype, torch.float32)
        return a.to(wide) @ b.to(wide)
