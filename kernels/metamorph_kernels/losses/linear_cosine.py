"""The last layer of the vision head together with the cosine loss of its output."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph_kernels.arguments import check_floating, check_reduction, check_shape, same_dtype
from metamorph_kernels.backends import resolve, row_limits
from metamorph_kernels.losses.cosine import cosine_loss
from metamorph_kernels.transforms import kernels_of


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
    any floating dtype. Differentiable in x, weight and bias. Result, zero rows and no rows, `impl`
    and what its kernels take as in `cosine_loss`: no rows give 0 and gradients of zeros.

    The products are PyTorch's. In the kernels the loss writes the prediction's gradient, in its
    dtype (float32 beside float16), as it reads prediction and target, and keeps nothing else, so
    the prediction is gone before the backward; there "mean" and "sum" use the gradient up. What is
    frozen takes no product. The gradient of the bias adds up in float32 or wider.

    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown reduction, and
    for an `impl` that cannot run this call; RuntimeError for a second backward, as `cosine_loss`.
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
    limits = row_limits(weight.t(), target)  # whose rows are as wide as those of the prediction
    backend = resolve("linear_cosine_loss", impl, x, **limits)

    def loss(x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor]:
        prediction = F.linear(x, weight, *bias)
        return (cosine_loss(prediction, target, reduction=reduction, impl=backend),)

    tensors = (x, weight) if bias is None else (x, weight, bias)
    if backend == "torch":
        [result] = loss(*tensors)
    else:
        [result] = kernels_of("linear_cosine_loss", backend)(loss, *tensors)
    return result


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
