"""The output matrix together with the cross-entropy of its logits, a few rows at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import (
    check_integers,
    check_reduction,
    check_shape,
    same_dtype,
)
from metamorph_kernels.backends import resolve
from metamorph_kernels.losses.chunks import gradient_chunks, logit_chunks
from metamorph_kernels.products import add_product, wide_product
from metamorph_kernels.transforms import OnceOnly, readable

IGNORED = -100
ONCE_ONLY = OnceOnly(
    "linear_cross_entropy", "use torch.nn.functional.cross_entropy of x @ weight.t()"
)


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

    A logit may be -inf. One of NaN or +inf makes loss and gradient of its row NaN, and so does -inf
    in all of it.

    Triton takes logits to losses and to their gradient, in the dtype of x, by two reads and one
    write; the products are cuBLAS's. Of gradients `GRADIENT_BYTES_AT_ONCE` exist beside the logits.
    It does not take float64.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction, for
    an `impl` that cannot run this call, for a smoothing outside 0..1 or a negative `z_loss`, and in
    eager mode on the CPU for a label out of range. On a GPU such a label is not read on the host:
    it becomes NaN in Triton and stops at PyTorch's device-side assert in PyTorch.
    """
    check_reduction(reduction)
    x, weight = same_dtype(x=x, weight=weight)
    check_shape("x", x, "N, H", None, None)
    check_shape("weight", weight, "V, H", None, x.shape[1])
    check_integers("labels", labels, (torch.int64,), x.device)
    check_shape("labels", labels, "N", x.shape[0])
    triton_limit = "float64 runs in PyTorch only" if x.dtype == torch.float64 else None
    backend = resolve("linear_cross_entropy", impl, x, triton_limit)
    if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 to 1, got {label_smoothing!r}")
    if not isinstance(z_loss, (int, float)) or not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss: expected 0 or more, got {z_loss!r}")
    if weight.shape[0] == 0:
        raise ValueError(f"weight: expected at least one class, got {list(weight.shape)}")
    counted = labels != IGNORED
    if readable(labels):
        outside = labels[counted & ((labels < 0) | (labels >= weight.shape[0]))]
        if len(outside):
            raise ValueError(
                f"labels: expected 0 to {weight.shape[0] - 1} or {IGNORED}, got {outside[0].item()}"
            )

    rows = _Rows(float(label_smoothing), float(z_loss), backend)
    labels = labels.where(counted, 0)

    def loss(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        if reduction == "none":
            return (_RowLosses.apply(x, weight, labels, counted, rows),)
        wanted = [tensor.requires_grad and torch.is_grad_enabled() for tensor in (x, weight)]
        total, _, _ = _SummedLoss.apply(x, weight, labels, counted, rows, *wanted)
        return (total if reduction == "sum" else total / counted.sum().clamp(min=1),)

    [result] = ONCE_ONLY(loss, x, weight)
    return result


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


@dataclass(frozen=True)
class _Rows:
    """What happens to logits, some rows at a time."""

    smoothing: float
    z_loss: float
    backend: str

    def chunks(self, x: Tensor, weight: Tensor) -> list[slice]:
        """Rows whose gradient exists at once: in PyTorch it takes the place of the logits."""
        if self.backend == "torch":
            return logit_chunks(len(x), len(weight))
        return gradient_chunks(len(x), len(weight), x.element_size())

    def losses(
        self, x: Tensor, weight: Tensor, labels: Tensor, cotangents: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Losses [rows] of x [rows, H]; with cotangents [rows] also the logits' gradient [rows, V].

        The gradient is wide in PyTorch, and has the dtype of x in Triton.
        """
        if self.backend == "torch":
            logits = wide_product(x, weight.t())
            log_sums = logits.logsumexp(-1)
            log_sums.masked_fill_(log_sums == torch.inf, torch.nan)  # as log_softmax has it
            losses = self._losses(logits, log_sums, labels)
            if cotangents is None:
                return losses, None
            return losses, self._gradient(logits, log_sums, labels, cotangents)

        from metamorph_kernels.losses.cross_entropy_triton import linear_cross_entropy_rows

        losses, gradient = linear_cross_entropy_rows(
            x, weight, labels, cotangents, self.smoothing, self.z_loss
        )
        return losses, None if cotangents is None else gradient[:, : len(weight)]

    def _losses(self, logits: Tensor, log_sums: Tensor, labels: Tensor) -> Tensor:
        target = logits.gather(1, labels[:, None])[:, 0]
        if self.smoothing:
            target = (1 - self.smoothing) * target + self.smoothing * logits.mean(-1)
        return log_sums - target + self.z_loss * log_sums.square()

    def _gradient(
        self, logits: Tensor, log_sums: Tensor, labels: Tensor, cotangents: Tensor
    ) -> Tensor:
        """It takes the place of the logits."""
        gradient = logits.sub_(log_sums[:, None]).exp_()
        if self.z_loss:
            gradient.mul_(1 + 2 * self.z_loss * log_sums[:, None])
        if self.smoothing:
            gradient.sub_(self.smoothing / logits.shape[1])
        labels = labels[:, None]
        gradient.scatter_(1, labels, gradient.gather(1, labels) - (1 - self.smoothing))
        return gradient.mul_(cotangents[:, None])


def _no_sum(weight: Tensor, dtype: torch.dtype, x: Tensor) -> Tensor | None:
    """The weight gradient before the first rows: zeros where there are none.

    Else None, so that the first product writes it and nobody reads zeros.
    """
    return None if len(x) else torch.zeros_like(weight, dtype=dtype)


class _SummedLoss(torch.autograd.Function):
    """The sum over rows; its gradients are computed beside it and only scaled in the backward."""

    @staticmethod
    def forward(x, weight, labels, counted, rows, wants_x, wants_weight):
        wide = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=x.device)
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = _no_sum(weight, wide, x) if wants_weight else None
        for part in rows.chunks(x, weight):
            cotangents = counted[part].to(wide) if wants_x or wants_weight else None
            losses, of_logits = rows.losses(x[part], weight, labels[part], cotangents)
            total += losses.where(counted[part], 0).sum()
            if x_gradient is not None:
                x_gradient[part] = wide_product(of_logits, weight)
            if wants_weight:
                weight_gradient = add_product(weight_gradient, of_logits.t(), x[part])
            del of_logits  # before the next chunk makes its own
        return total, x_gradient, weight_gradient

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight, *_ = inputs
        _, *gradients = output
        ctx.mark_non_differentiable(*(tensor for tensor in gradients if tensor is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*gradients)
        ctx.weight_dtype = weight.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: None):
        x_gradient, weight_gradient = ctx.saved_tensors
        if x_gradient is not None:
            x_gradient = x_gradient * gradient.to(x_gradient.dtype)
        if weight_gradient is not None:
            scaled = torch.empty_like(weight_gradient, dtype=ctx.weight_dtype)
            weight_gradient = torch.mul(weight_gradient, gradient, out=scaled)  # in one pass
        return x_gradient, weight_gradient, None, None, None, None, None


class _RowLosses(torch.autograd.Function):
    """The loss of each row; each has a cotangent of its own, so logits are computed again."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, labels: Tensor, counted: Tensor, rows: _Rows) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        losses = x.new_empty(len(x), dtype=wide)
        for part in rows.chunks(x, weight):
            losses[part], _ = rows.losses(x[part], weight, labels[part], None)
        return losses.where(counted, 0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.rows = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, labels, counted = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        cotangents = gradient.where(counted, 0)
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = _no_sum(weight, gradient.dtype, x) if wants_weight else None
        for part in ctx.rows.chunks(x, weight):
            _, of_logits = ctx.rows.losses(x[part], weight, labels[part], cotangents[part])
            if x_gradient is not None:
                x_gradient[part] = wide_product(of_logits, weight)
            if wants_weight:
                weight_gradient = add_product(weight_gradient, of_logits.t(), x[part])
            del of_logits
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        return x_gradient, weight_gradient, None, None, None
