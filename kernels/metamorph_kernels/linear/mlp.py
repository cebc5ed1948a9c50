"""Linear, GELU, linear: the projector and the body of the vision head."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph_kernels.arguments import check_shape, same_dtype
from metamorph_kernels.backends import resolve
from metamorph_kernels.transforms import kernels_of


def mlp_gelu(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    keep_activation: bool = False,
    impl: str = "auto",
) -> Tensor:
    """gelu(x w1^T + b1) w2^T + b2 with the exact (erf) GELU, as in MetaMorph (arXiv 2412.14164).

    x [..., I], w1 [F, I], b1 [F], w2 [O, F], b2 [O], all in one of float64, float32, bfloat16,
    float16, or under autocast. Returns [..., O]. Differentiable in all five.

    The products are PyTorch's, biases in them. In Triton one kernel each way goes over the rows
    between them: the GELU, in place where nothing passes back through it; and its derivative times
    the gradient, in place, with the sums for b1. What is frozen takes no product. It keeps the
    N x F numbers before the GELU and writes those after it once more in the backward;
    `keep_activation=True` keeps these too: twice the memory, one write less. PyTorch always keeps
    both. Triton takes all widths, and not float64.

    As in PyTorch, what is before the GELU and the gradient of what is after it are rounded to the
    dtype; all between two roundings is float32. In bfloat16 and float16 the GELU and its derivative
    in Triton, once rounded, are within 0.6 units in the last place of the exact ones for every
    number of the dtype. The sums for b1 are of gradients not yet rounded, always in one order.

    Raises ValueError for shapes, dtypes or devices that do not fit, and for an `impl` that cannot
    run this call.
    """
    x, w1, b1, w2, b2 = same_dtype(x=x, w1=w1, b1=b1, w2=w2, b2=b2)
    check_shape("w1", w1, "F, I", None, None)
    hidden_features, in_features = w1.shape
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x: expected shape [..., I] = [..., {in_features}], got {list(x.shape)}")
    check_shape("b1", b1, "F", hidden_features)
    check_shape("w2", w2, "O, F", None, hidden_features)
    check_shape("b2", b2, "O", w2.shape[0])
    limit = "float64 runs in PyTorch only" if x.dtype == torch.float64 else None
    if resolve("mlp_gelu", impl, x, limit) == "torch":
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate="none"), w2, b2)

    from metamorph_kernels.linear.mlp_triton import mlp_gelu_triton

    def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        rows = x.reshape(math.prod(x.shape[:-1]), in_features)
        out = mlp_gelu_triton(rows, w1, b1, w2, b2, keep_activation)
        return (out.reshape(*x.shape[:-1], len(w2)),)

    [result] = kernels_of("mlp_gelu", "triton")(mlp, x, w1, b1, w2, b2)
    return result


class MLPGelu(nn.Module):
    """`mlp_gelu` with its weights, [..., in_features] -> [..., out_features], by `compute`."""

    compute = staticmethod(mlp_gelu)

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        keep_activation: bool = False,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, hidden_features, device=device, dtype=dtype)
        self.linear_2 = nn.Linear(hidden_features, out_features, device=device, dtype=dtype)
        self.keep_activation = keep_activation
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear_1, self.linear_2
        return self.compute(
            *(x, first.weight, first.bias, second.weight, second.bias),
            keep_activation=self.keep_activation,
            impl=self.impl,
        )
