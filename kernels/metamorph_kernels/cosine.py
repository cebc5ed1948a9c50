"""The loss of visual-predictive tuning: one minus the cosine of prediction and target."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import check_floating, check_reduction, check_shape
from metamorph_kernels.backends import resolve


def cosine_loss(
    prediction: Tensor, target: Tensor, *, reduction: str = "mean", impl: str = "auto"
) -> Tensor:
    """1 - cos(prediction, target) of each row (MetaMorph, arXiv 2412.14164, section 2).

    prediction, target [N, C], each float64, float32, bfloat16 or float16. Arithmetic and result
    are float32, or float64 where the prediction is. `reduction` "none" gives [N], "sum" and
    "mean" a scalar, exactly 0 for no rows. The target takes no gradient. A row of zeros on
    either side has loss 1 and gradient 0; so has one whose sum of squares falls below the
    smallest normal number (a norm of 1e-19 in float32), where no direction is left.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction or
    `impl`.
    """
    check_reduction(reduction)
    check_floating(prediction=prediction, target=target)
    check_shape("prediction", prediction, "N, C", None, None)
    check_shape("target", target, "N, C", *prediction.shape)
    resolve("cosine_loss", impl, prediction)
    losses = _CosineLoss.apply(prediction, target.detach())
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / max(len(losses), 1)


class _CosineLoss(torch.autograd.Function):
    """Autograd's own formula overflows for short rows and keeps three float32 [N, C] alive."""

    @staticmethod
    def forward(ctx, prediction: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, target)
        wide = torch.promote_types(prediction.dtype, torch.float32)
        unit_prediction, _ = _normalise(prediction.to(wide))
        unit_target, _ = _normalise(target.to(wide))
        return 1 - (unit_prediction * unit_target).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        prediction, target = ctx.saved_tensors
        unit_prediction, inverse_norm = _normalise(prediction.to(gradient.dtype))
        unit_target, _ = _normalise(target.to(gradient.dtype))
        cosine = (unit_prediction * unit_target).sum(-1, keepdim=True)
        across = cosine * unit_prediction - unit_target  # [N, C], at right angles to prediction
        return (across * (inverse_norm * gradient[:, None])).to(prediction.dtype), None


def _normalise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and the inverse norms [N, 1]; both 0 for a row without direction."""
    squares = (rows * rows).sum(-1, keepdim=True)
    inverse_norm = torch.where(squares >= torch.finfo(rows.dtype).tiny, squares.rsqrt(), 0)
    return rows * inverse_norm, inverse_norm
