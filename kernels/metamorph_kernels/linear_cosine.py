"""The last layer of the vision head together with the cosine loss of its output."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph_kernels.arguments import check_floating, check_reduction, check_shape, same_dtype
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

    Triton keeps the prediction once, in the dtype of x, and of the loss three sums a row, which the
    epilogue of the product yields; what is frozen takes no product in the backward. It takes H and
    C whose rows are whole 16 bytes, and not float64.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction, and
    for an `impl` that cannot run this call.
    """
    check_reduction(reduction)
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
    if resolve("linear_cosine_loss", impl, x, _triton_limit(x, target)) == "torch":
        return cosine_loss(F.linear(x, weight, bias), target, reduction=reduction, impl=impl)

    from metamorph_kernels.linear_cosine_triton import linear_cosine_triton

    losses = linear_cosine_triton(x, weight, bias, target.detach())
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / max(len(losses), 1)


def _triton_limit(x: Tensor, target: Tensor) -> str | None:
    """What of this call the Triton kernel cannot do: rows without a tensor descriptor, or None."""
    if torch.float64 in (x.dtype, target.dtype):
        return "float64 runs in PyTorch only"
    widths = {"H": x.shape[1] * x.element_size(), "C": target.shape[1] * x.element_size()}
    if target.element_size() < x.element_size():
        widths["C"] = target.shape[1] * target.element_size()
    for name, size in widths.items():
        if size == 0 or size % 16 != 0:
            return f"rows of whole 16 bytes only, got {size} bytes along {name}"
    return None


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
