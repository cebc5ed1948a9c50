"""A square of encoder tokens resized to fewer, each of length one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph_kernels.arguments import check_floating, check_shape
from metamorph_kernels.backends import resolve


def pool_normalize(features: Tensor, grid: int, *, impl: str = "auto") -> Tensor:
    """Bilinear resize of a square of tokens to grid x grid, then L2 normalisation of each.

    features [B, N, C], row-major with N a square; returns [B, grid * grid, C] in the same dtype
    (float64, float32, bfloat16 or float16; arithmetic in float32 or wider). No antialiasing,
    half-pixel centres: 27 x 27 -> 8 x 8 reads 256 of the 729 tokens. Differentiable. A token of
    zeros stays zeros, with gradient 0. The visual tokens of MetaMorph (arXiv 2412.14164), both
    input and regression target.

    Raises ValueError for shapes, dtypes or a grid that do not fit, and for an unknown `impl`.
    """
    check_floating(features=features)
    check_shape("features", features, "B, N, C", None, None, None)
    resolve("pool_normalize", impl, features)
    side = math.isqrt(features.shape[1])
    if side == 0 or side * side != features.shape[1]:
        raise ValueError(
            f"features: expected [B, N, C] with N a square, got {list(features.shape)}"
        )
    if isinstance(grid, bool) or not isinstance(grid, int) or grid <= 0:
        raise ValueError(f"grid: expected a positive integer, got {grid!r}")

    wide = torch.promote_types(features.dtype, torch.float32)
    image = features.to(wide).unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [B, C, side, side]
    pooled = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=False)
    pooled = pooled.permute(0, 2, 3, 1).flatten(1, 2)  # [B, grid * grid, C]
    norm = torch.linalg.vector_norm(pooled, dim=-1, keepdim=True)
    empty = norm < math.sqrt(torch.finfo(wide).tiny)
    unit = torch.where(empty, 0, pooled / torch.where(empty, 1, norm))
    return unit.to(features.dtype)
