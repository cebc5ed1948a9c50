"""The loss of visual-predictive tuning: one minus the cosine of prediction and target."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import (
    check_floating,
    check_integers,
    check_reduction,
    check_shape,
)
from metamorph_kernels.backends import resolve, row_limits
from metamorph_kernels.transforms import check_graph, kernels_of, readable


def cosine_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    target_index: Tensor | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """1 - cos(prediction, target) of each row (MetaMorph, arXiv 2412.14164, section 2).

    prediction, target [N, C], each float64, float32, bfloat16 or float16. Arithmetic and result
    are float32, or float64 where the prediction is. With `target_index`, int64 [N], prediction i
    belongs to target[target_index[i]] and target is [M, C]; a negative index ignores the row: loss
    0, gradient 0, not counted in the mean. `reduction` "none" gives [N], "sum" and "mean" a
    scalar, exactly 0 where no row counts. The target takes no gradient. A row of zeros on either
    side has loss 1 and gradient 0; so has one whose sum of squares falls below the smallest normal
    number (a norm of 1e-19 in float32), where no direction is left.

    The kernels read prediction and target once and write the gradient in the same pass, if one is
    needed. Backward only multiplies it: in eager mode, unless the prediction is float16, "mean" and
    "sum" do so in place, and a cotangent of exactly 1 touches nothing. Triton takes rows of up to
    8192, CUDA any; neither takes float64.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction, for
    an `impl` that cannot run this call, and in eager mode on the CPU for an index of M or more. On
    a GPU the index is not read on the host: such a row becomes NaN in the kernels and stops at
    PyTorch's device-side assert in PyTorch. Raises RuntimeError for a second backward through what
    the first one has multiplied in place.
    """
    check_reduction(reduction)
    check_floating(prediction=prediction, target=target)
    check_shape("prediction", prediction, "N, C", None, None)
    if target_index is None:
        check_shape("target", target, "N, C", *prediction.shape)
    else:
        check_shape("target", target, "M, C", None, prediction.shape[1])
        _check_index(target_index, prediction, target)

    target = target.detach()
    backend = resolve("cosine_loss", impl, prediction, **row_limits(prediction, target))
    if backend == "torch":
        check_graph("cosine_loss")
        # Dynamo traces no function that has a forward-mode derivative.
        function = _TorchLosses if torch.compiler.is_compiling() else _TorchLossesWithTangents
        losses = function.apply(prediction, target, target_index)
        return _reduced(losses, target_index, reduction)

    def loss(prediction: Tensor, target: Tensor) -> tuple[Tensor]:
        if prediction.requires_grad and torch.is_grad_enabled():
            result, _ = _KernelLoss.apply(prediction, target, target_index, reduction, backend)
            return (result,)
        cosine_rows, _, _ = _kernels(backend)
        losses, _ = cosine_rows(prediction, target, target_index, with_gradient=False, mean=False)
        return (_reduced(losses, target_index, reduction),)

    [result] = kernels_of("cosine_loss", backend)(loss, prediction, target)
    return result


def _reduced(losses: Tensor, target_index: Tensor | None, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if target_index is None:
        return total / max(len(losses), 1)
    return total / (target_index >= 0).sum().clamp(min=1)


def _check_index(target_index: Tensor, prediction: Tensor, target: Tensor) -> None:
    check_integers("target_index", target_index, (torch.int64,), prediction.device)
    check_shape("target_index", target_index, "N", prediction.shape[0])
    if readable(target_index):
        outside = target_index[target_index >= target.shape[0]]
        if len(outside):
            raise ValueError(
                f"target_index: expected less than {target.shape[0]}, the rows of target, "
                f"got {outside[0].item()}"
            )


def _kernels(backend: str) -> tuple[Callable, Callable, Callable]:
    """Of a backend: losses and gradients of rows in one pass; rows times one number each; a matrix
    times one number, in place."""
    if backend == "cuda":
        from metamorph_kernels.cuda_library import cosine_rows, scale_in_place, scale_rows
    else:
        from metamorph_kernels.losses.cosine_triton import cosine_rows, scale_in_place, scale_rows
    return cosine_rows, scale_rows, scale_in_place


class _KernelLoss(torch.autograd.Function):
    """Keeps the gradient for a cotangent of one, in place of prediction and target."""

    @staticmethod
    def forward(
        prediction: Tensor,
        target: Tensor,
        target_index: Tensor | None,
        reduction: str,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        cosine_rows, _, _ = _kernels(backend)
        losses, unit_gradient = cosine_rows(
            prediction, target, target_index, with_gradient=True, mean=reduction == "mean"
        )
        return _reduced(losses, target_index, reduction), unit_gradient

    @staticmethod
    def setup_context(ctx, inputs, output):
        prediction, _, _, reduction, ctx.backend = inputs
        _, unit_gradient = output
        ctx.mark_non_differentiable(unit_gradient)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(unit_gradient)
        ctx.dtype = prediction.dtype
        ctx.in_place = reduction != "none" and unit_gradient.dtype == prediction.dtype
        ctx.used = False

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, of_the_kept: None) -> tuple[Tensor, None, None, None, None]:
        _, scale_rows, scale_in_place = _kernels(ctx.backend)
        # A compiled graph would copy what an op changes; it multiplies into a new tensor instead.
        if not ctx.in_place or torch.compiler.is_compiling():
            (unit_gradient,) = ctx.saved_tensors
            factors = gradient.expand(len(unit_gradient))
            return scale_rows(unit_gradient, factors, ctx.dtype), None, None, None, None
        if ctx.used:
            raise RuntimeError(
                "cosine_loss: a second backward through one loss needs reduction='none' or "
                "impl='torch'; the first one has used its gradient up"
            )
        (unit_gradient,) = ctx.saved_tensors
        ctx.used = True
        scale_in_place(unit_gradient, gradient)
        return unit_gradient, None, None, None, None


class _TorchLosses(torch.autograd.Function):
    """Autograd's own formula overflows for short rows and keeps three float32 [N, C] alive.

    The backward is made of PyTorch's ops on what is saved, so that it can be differentiated itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(prediction: Tensor, target: Tensor, target_index: Tensor | None) -> Tensor:
        wide = torch.promote_types(prediction.dtype, torch.float32)
        prediction, target = _pairs(prediction, target, target_index, wide)
        unit_prediction, _ = _normalise(prediction)
        unit_target, _ = _normalise(target)
        losses = 1 - (unit_prediction * unit_target).sum(-1)
        return losses if target_index is None else losses.masked_fill(target_index < 0, 0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        prediction, target, target_index = ctx.saved_tensors
        across, inverse_norm = _across(prediction, target, target_index)
        gradient = across * (inverse_norm * gradient[:, None])
        return gradient.to(prediction.dtype), None, None


class _TorchLossesWithTangents(_TorchLosses):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: Tensor | None) -> Tensor:
        across, inverse_norm = _across(*ctx.saved_tensors)
        return (across * inverse_norm * tangent).sum(-1)


def _across(
    prediction: Tensor, target: Tensor, target_index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The slope of each row, [N, C], but for the inverse norm of its prediction, [N, 1]; and that.

    It stands at right angles to the prediction.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = _pairs(prediction, target, target_index, wide)
    unit_prediction, inverse_norm = _normalise(prediction)
    unit_target, _ = _normalise(target)
    cosine = (unit_prediction * unit_target).sum(-1, keepdim=True)
    return cosine * unit_prediction - unit_target, inverse_norm


def _pairs(
    prediction: Tensor, target: Tensor, target_index: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Predictions and their targets, both [N, C]; zeros, whose gradient is 0, in ignored rows."""
    if target_index is None:
        return prediction.to(wide), target.to(wide)
    if len(target) == 0:  # and so every row is ignored
        target = target.new_zeros(1, target.shape[1])
    ignored = (target_index < 0)[:, None]
    picked = target[target_index.clamp(min=0)]
    return prediction.to(wide).masked_fill(ignored, 0), picked.to(wide).masked_fill(ignored, 0)


def _normalise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and the inverse norms [N, 1]; both 0 for a row without direction."""
    squares = (rows * rows).sum(-1, keepdim=True)
    has_direction = squares >= torch.finfo(rows.dtype).tiny
    # Ones in place of the others: what autograd makes of 0 and an infinite slope is NaN.
    inverse_norm = torch.where(has_direction, squares, 1).rsqrt() * has_direction
    return rows * inverse_norm, inverse_norm
