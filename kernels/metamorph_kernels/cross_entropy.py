"""The output matrix together with the cross-entropy of its logits, a few rows at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import (
    check_integers,
    check_reduction,
    check_shape,
    same_dtype,
    without_autocast,
)
from metamorph_kernels.backends import resolve

IGNORED = -100
LOGITS_AT_ONCE = 2**26  # 256 MiB in float32


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Cross-entropy of the logits x weight^T, the text loss of MetaMorph (arXiv 2412.14164).

    x [N, H] and weight [V, H] in one of float64, float32, bfloat16, float16, or under autocast;
    labels int64 [N] in 0..V-1, or -100 for a row that has loss 0 and does not count in the mean.
    Result float32, or float64 where x is: [N] for "none", a scalar for "sum" and "mean", which is
    exactly 0 where no row counts.

    `label_smoothing` e makes the target (1 - e) at the label plus e / V everywhere (Szegedy et al.,
    arXiv 1512.00567); `z_loss` z adds z (log sum exp logits)^2 (PaLM, arXiv 2204.02311, section 5).

    Logits are float32, and no more than `LOGITS_AT_ONCE` of them (or one row) ever exist. "sum" and
    "mean" compute the gradients beside the loss, with three matrix products in all; "none" computes
    the logits again in the backward. The weight gradient adds up in float32. Give only rows that
    count: an ignored row costs what another costs.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction or
    `impl`, for a smoothing outside 0..1 or a negative `z_loss`, and in eager mode on the CPU for a
    label out of range. On a GPU such a label is not read on the host: it stops at PyTorch's
    device-side assert.
    """
    check_reduction(reduction)
    x, weight = same_dtype(x=x, weight=weight)
    check_shape("x", x, "N, H", None, None)
    check_shape("weight", weight, "V, H", None, x.shape[1])
    check_integers("labels", labels, (torch.int64,), x.device)
    check_shape("labels", labels, "N", x.shape[0])
    resolve("linear_cross_entropy", impl, x)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 to 1, got {label_smoothing}")
    if not z_loss >= 0:
        raise ValueError(f"z_loss: expected 0 or more, got {z_loss}")
    if weight.shape[0] == 0:
        raise ValueError(f"weight: expected at least one class, got {list(weight.shape)}")
    counted = labels != IGNORED
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = labels[counted & ((labels < 0) | (labels >= weight.shape[0]))]
        if len(outside):
            raise ValueError(
                f"labels: expected 0 to {weight.shape[0] - 1} or {IGNORED}, got {outside[0].item()}"
            )

    arguments = (x, weight, labels.where(counted, 0), counted, label_smoothing, z_loss)
    if reduction == "none":
        return _RowLosses.apply(*arguments)
    total = _SummedLoss.apply(*arguments)
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


class _SummedLoss(torch.autograd.Function):
    """The sum over rows; its gradients are computed beside it and only scaled in the backward."""

    @staticmethod
    def forward(ctx, x, weight, labels, counted, smoothing, z_loss) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=x.device)
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        for rows in _chunks(x, weight):
            logits = _wide_product(x[rows], weight.t())  # [rows, V]
            log_sum = logits.logsumexp(-1)
            losses = _losses(logits, log_sum, labels[rows], smoothing, z_loss)
            total += losses.where(counted[rows], 0).sum()
            if wants_x or wants_weight:
                cotangent = counted[rows].to(wide)
                residual = _residual(logits, log_sum, labels[rows], cotangent, smoothing, z_loss)
                if wants_x:
                    x_gradient[rows] = _wide_product(residual, weight)
                if wants_weight:
                    _add_product(weight_gradient, residual.t(), x[rows])
        ctx.save_for_backward(x_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x_gradient, weight_gradient = ctx.saved_tensors
        if x_gradient is not None:
            x_gradient = x_gradient * gradient.to(x_gradient.dtype)
        if weight_gradient is not None:
            weight_gradient = (weight_gradient * gradient).to(ctx.weight_dtype)
        return x_gradient, weight_gradient, None, None, None, None


class _RowLosses(torch.autograd.Function):
    """The loss of each row; each has a cotangent of its own, so logits are computed again."""

    @staticmethod
    def forward(ctx, x, weight, labels, counted, smoothing, z_loss) -> Tensor:
        losses, log_sums = [x.new_zeros(0, dtype=torch.promote_types(x.dtype, torch.float32))], []
        for rows in _chunks(x, weight):
            logits = _wide_product(x[rows], weight.t())  # [rows, V]
            log_sums.append(logits.logsumexp(-1))
            losses.append(_losses(logits, log_sums[-1], labels[rows], smoothing, z_loss))
        ctx.save_for_backward(x, weight, labels, counted, *log_sums)
        ctx.smoothing, ctx.z_loss = smoothing, z_loss
        return torch.cat(losses).where(counted, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, labels, counted, *log_sums = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        gradient = gradient.where(counted, 0)
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros_like(weight, dtype=gradient.dtype) if wants_weight else None
        for rows, log_sum in zip(_chunks(x, weight), log_sums, strict=True):
            logits = _wide_product(x[rows], weight.t())
            residual = _residual(
                logits, log_sum, labels[rows], gradient[rows], ctx.smoothing, ctx.z_loss
            )
            if wants_x:
                x_gradient[rows] = _wide_product(residual, weight)
            if wants_weight:
                _add_product(weight_gradient, residual.t(), x[rows])
        if wants_weight:
            weight_gradient = weight_gradient.to(weight.dtype)
        return x_gradient, weight_gradient, None, None, None, None


def _chunks(x: Tensor, weight: Tensor) -> Iterator[slice]:
    """Rows whose logits exist at once."""
    most = max(LOGITS_AT_ONCE // weight.shape[0], 1)
    for first in range(0, len(x), most):
        yield slice(first, min(first + most, len(x)))


def _losses(
    logits: Tensor, log_sum: Tensor, labels: Tensor, smoothing: float, z_loss: float
) -> Tensor:
    """[rows] from logits [rows, V] and the logarithm of the sum of their exponentials."""
    target = logits.gather(1, labels[:, None])[:, 0]
    if smoothing:
        target = (1 - smoothing) * target + smoothing * logits.mean(-1)
    return log_sum - target + z_loss * log_sum.square()


def _residual(
    logits: Tensor,
    log_sum: Tensor,
    labels: Tensor,
    cotangent: Tensor,
    smoothing: float,
    z_loss: float,
) -> Tensor:
    """The gradient [rows, V] of losses with cotangents [rows]; it takes the place of the logits."""
    residual = logits.sub_(log_sum[:, None]).exp_()
    if z_loss:
        residual.mul_(1 + 2 * z_loss * log_sum[:, None])
    if smoothing:
        residual.sub_(smoothing / logits.shape[1])
    labels = labels[:, None]
    residual.scatter_(1, labels, residual.gather(1, labels) - (1 - smoothing))
    return residual.mul_(cotangent[:, None])


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32 or wider; where b is in half precision, the GPU multiplies in it."""
    with without_autocast(b):
        if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
        wide = torch.promote_types(b.dtype, torch.float32)
        return a.to(wide) @ b.to(wide)


def _add_product(sum: Tensor, a: Tensor, b: Tensor) -> None:
    """sum += a b, in the float32 or wider of `sum`."""
    with without_autocast(b):
        if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):
            torch.addmm(sum, a.to(b.dtype), b, out_dtype=torch.float32, out=sum)
        else:
            sum.addmm_(a.to(sum.dtype), b.to(sum.dtype))
