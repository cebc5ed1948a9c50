"""The last layer of the vision head together with the cosine loss of its output."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph_kernels.arguments import check_floating, check_shape, same_dtype
from metamorph_kernels.backends import resolve
from metamorph_kernels.cosine import cosine_loss


def linear_cosine_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """`cosine_loss(x weight^T + bias, target)`, the visual loss of MetaMorph (arXiv 2412.14164).

    x [N, H], weight [C, H], bias [C] or None in one dtype, or under autocast; target [N, C] in
    any floating dtype. Differentiable in x, weight and bias. Result, zero rows and no rows as in
    `cosine_loss`: no rows give 0 and gradients of zeros.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction or
    `impl`.
    """
    check_floating(x=x, target=target)
    if bias is None:
        x, weight = same_dtype(x=x, weight=weight)
    else:
        x, weight, bias = same_dtype(x=x, weight=weight, bias=bias)
    check_shape("x", x, "N, H", None, None)
    check_shape("weight", weight, "C, H", None, x.shape[1])
    if bias is not None:
        check_shape("bias", bias, "C", weight.shape[0])
    check_shape("target", target, "N, C", x.shape[0], weight.shape[0])
    resolve("linear_cosine_loss", impl, x)
    return cosine_loss(F.linear(x, weight, bias), target, reduction=reduction)


class LinearCosineLoss(nn.Module):
    """A linear layer H -> C that returns `linear_cosine_loss` of its output and a target.

    Keys of the state dict: `weight` [C, H] and, unless `bias=False`, `bias` [C].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        reduction: str = "mean",
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight, self.bias = linear.weight, linear.bias
        self.reduction = reduction
        self.impl = impl

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return linear_cosine_loss(
            x, self.weight, self.bias, target, reduction=self.reduction, impl=self.impl
        )
