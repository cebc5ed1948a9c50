"""Linear, GELU, linear: the projector and the body of the vision head."""

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

    Triton takes bias and GELU, and in the backward the GELU's derivative and the bias gradient, in
    the epilogue of a product; what is frozen takes no product. It keeps the N x F numbers before
    the GELU and writes those after it once more in the backward; `keep_activation=True` keeps these
    too: twice the memory, one write less. PyTorch always keeps both. Triton takes I, F and O whose
    rows are whole 16 bytes, and not float64. In bfloat16 and float16 its GELU and derivative, once
    rounded, are within 0.6 units in the last place of the exact ones for every number of the dtype.

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
    if resolve("mlp_gelu", impl, x, _triton_limit(x, w2)) == "torch":
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate="none"), w2, b2)

    from metamorph_kernels.linear.mlp_triton import mlp_gelu_triton

    def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        out = mlp_gelu_triton(x.reshape(-1, in_features), w1, b1, w2, b2, keep_activation)
        return (out.reshape(*x.shape[:-1], len(w2)),)

    [result] = kernels_of("mlp_gelu", "triton")(mlp, x, w1, b1, w2, b2)
    return result


def _triton_limit(x: Tensor, w2: Tensor) -> str | None:
    """What of this call the Triton kernels cannot do: rows without a tensor descriptor, or None."""
    if x.dtype == torch.float64:
        return "float64 runs in PyTorch only"
    for name, width in {"I": x.shape[-1], "F": w2.shape[1], "O": w2.shape[0]}.items():
        size = width * x.element_size()
        if size == 0 or size % 16 != 0:
            return f"rows of whole 16 bytes only, got {size} bytes along {name}"
    return None


class MLPGelu(nn.Module):
    """`mlp_gelu` with its weights, [..., in_features] -> [..., out_features]."""

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
        return mlp_gelu(
            *(x, first.weight, first.bias, second.weight, second.bias),
            keep_activation=self.keep_activation,
            impl=self.impl,
        )
