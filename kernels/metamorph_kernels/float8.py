"""Float8 in PyTorch: rows rounded with a scale each, and the products of two such matrices.

`float8_triton` has the same functions as kernels. A matrix of float8 is padded with zeros along its
rows to the multiple of ALIGNMENT that tensor cores and copy engine ask for.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph_kernels.absence import gpu_absence
from metamorph_kernels.arguments import without_autocast

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2  # of values, of gradients
ALIGNMENT = 16
CAPABILITY = (8, 9)  # the oldest GPUs with float8 products
# Of the weights of attention. Weights up to 1 would vanish below 2 ** -10, and with them the many
# small ones beside a token that all attend to. These vanish below 2 ** -17 of the largest.
WEIGHT_SCALE = 256.0


def quantise(x: Tensor, dtype: torch.dtype, dims: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x in float8, and the float32 scales that multiply it back, of size 1 along `dims`.

    A scale is the largest magnitude along `dims` / that of `dtype`, or 1 where that is 0. With a
    NaN or an infinity along `dims` all becomes NaN once it is multiplied back.
    """
    x = x.float()
    largest = torch.finfo(dtype).max
    scale = x.abs().amax(dims, keepdim=True) / largest
    scale = scale.masked_fill(scale == 0, 1)
    # A subnormal scale is coarse: the quotient may exceed what float8 holds, and a cast not clamp.
    return (x / scale).clamp(-largest, largest).to(dtype), scale


def padded(size: int) -> int:
    """The multiple of ALIGNMENT, and not 0, that holds `size` numbers."""
    # pyrefly: ignore[bad-return]  of two ints sym_max is an int
    return torch.sym_max(-(-size // ALIGNMENT), 1) * ALIGNMENT


def quantise_rows(x: Tensor, dtype: torch.dtype, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """x [N, C], or its exact GELU, as float8 [N, padded C], and the scales [N] of its rows."""
    if gelu:
        x = F.gelu(x.float())
    padding = padded(x.shape[1]) - x.shape[1]
    values, scales = quantise(F.pad(x, (0, padding)) if padding else x, dtype, 1)
    return values, scales[:, 0]


def quantise_columns(x: Tensor, dtype: torch.dtype, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """x [N, C], or its exact GELU, as float8 [C, padded N], and the scales [C] of its columns."""
    values, scales = quantise_rows(x.t(), dtype, gelu)
    return values.contiguous(), scales


def scaled_product(
    a: Tensor,  # float8 [M, K]
    a_scales: Tensor,  # float32 [M]
    b: Tensor,  # E4M3 [N, K]
    b_scales: Tensor,  # float32 [N]
    dtype: torch.dtype,
    bias: Tensor | None = None,  # [N] in `dtype`
    before_gelu: Tensor | None = None,  # [M, N] in `dtype`
) -> Tensor:
    """a b^T [M, N] in `dtype`, with both scales and the bias; then times gelu'(before_gelu).

    In float8 on GPUs that have it, for bfloat16 and N in multiples of 16; else float8 is emulated
    in float32, which costs what float32 costs.
    """
    has_float8 = gpu_absence(a.device.type, CAPABILITY) is None
    with without_autocast(a):
        if has_float8 and dtype == torch.bfloat16 and len(b) % ALIGNMENT == 0:
            product = torch._scaled_mm(
                a,
                b.t(),
                a_scales[:, None],
                b_scales[None, :],
                None if bias is None else bias.contiguous(),
                out_dtype=dtype,
                use_fast_accum=False,  # it keeps fewer bits than float32
            )
        else:
            total = a.float() @ b.float().t() * a_scales[:, None] * b_scales
            product = (total if bias is None else total + bias.float()).to(dtype)
        if before_gelu is not None:
            product = torch.ops.aten.gelu_backward(product, before_gelu)
    return product
