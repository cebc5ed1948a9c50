"""A square of encoder tokens resized to fewer, each of length one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import check_floating, check_shape
from metamorph_kernels.backends import resolve, row_limits
from metamorph_kernels.cuda_library import pool_normalize_rows
from metamorph_kernels.transforms import kernels_of


def pool_normalize(features: Tensor, grid: int, *, impl: str = "auto") -> Tensor:
    """Bilinear resize of a square of tokens to grid x grid, then L2 normalisation of each.

    features [B, N, C], row-major with N a square; returns [B, grid * grid, C] in the same dtype
    (float64, float32, bfloat16 or float16; arithmetic in float32 or wider). No antialiasing,
    half-pixel centres: 27 x 27 -> 8 x 8 reads 256 of the 729 tokens (`tokens_read`).
    Differentiable. A token of zeros stays zeros, with gradient 0. The visual tokens of MetaMorph
    (arXiv 2412.14164), both input and regression target.

    Triton takes tokens of up to 8192 and CUDA any, but CUDA has no backward; neither takes float64.

    Raises ValueError for shapes, dtypes or a grid that do not fit, and for an `impl` that cannot
    run this call.
    """
    check_floating(features=features)
    check_shape("features", features, "B, N, C", None, None, None)
    side = _root(features.shape[1])
    if side == 0 or side * side != features.shape[1]:
        raise ValueError(
            f"features: expected [B, N, C] with N a square, got {list(features.shape)}"
        )
    if features.shape[2] == 0:
        raise ValueError(f"features: expected one column or more, got {list(features.shape)}")
    if isinstance(grid, bool) or not isinstance(grid, int) or grid <= 0:
        raise ValueError(f"grid: expected a positive integer, got {grid!r}")

    differentiated = features.requires_grad and torch.is_grad_enabled()
    limits = row_limits(features)
    if differentiated:
        limits["cuda_limit"] = "its backward runs in Triton and PyTorch only"
    backend = resolve("pool_normalize", impl, features, **limits)
    if backend == "torch":
        return _pool_normalize_torch(features, side, grid)
    [pooled] = kernels_of("pool_normalize", backend)(
        lambda features: (_by_kernels(features, grid, backend, differentiated),), features
    )
    return pooled


def tokens_read(side: int, grid: int) -> list[int]:
    """Which of side * side tokens have a weight in `pool_normalize`, in increasing order."""
    lines = set()
    for out in range(grid):
        # The centre of `out` in the input is source / (2 grid).
        source = max((2 * out + 1) * side - grid, 0)
        lower, rest = divmod(source, 2 * grid)
        lines |= {lower, min(lower + 1, side - 1)} if rest else {lower}
    return [row * side + column for row in sorted(lines) for column in sorted(lines)]


def _pool_normalize_torch(features: Tensor, side: int, grid: int) -> Tensor:
    wide = torch.promote_types(features.dtype, torch.float32)
    image = features.to(wide).unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [B, C, side, side]
    pooled = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=False)
    pooled = pooled.permute(0, 2, 3, 1).flatten(1, 2)  # [B, grid * grid, C]
    norm = torch.linalg.vector_norm(pooled.detach(), dim=-1, keepdim=True)
    empty = norm < math.sqrt(torch.finfo(wide).tiny)
    # Ones in place of zeros, where the norm has no second derivative.
    norm = torch.linalg.vector_norm(torch.where(empty, 1, pooled), dim=-1, keepdim=True)
    unit = torch.where(empty, 0, pooled / norm)
    return unit.to(features.dtype)


def _root(tokens: int) -> int:
    """The whole root, rounded down; of a symbolic size too, for any that has features in memory."""
    if torch.compiler.is_compiling():
        # pyrefly: ignore[bad-return]  a symbolic size passes for an int
        return torch.sym_int(torch.sym_sqrt(tokens))
    return math.isqrt(tokens)


def _by_kernels(features: Tensor, grid: int, backend: str, differentiated: bool) -> Tensor:
    if backend == "cuda":
        return pool_normalize_rows(features, grid)
    if differentiated:
        return _TritonPool.apply(features, grid)
    from metamorph_kernels.rows.pooling_triton import pool_normalize_forward

    return pool_normalize_forward(features, grid)


class _TritonPool(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, grid: int) -> Tensor:
        from metamorph_kernels.rows.pooling_triton import pool_normalize_forward

        return pool_normalize_forward(features, grid)

    @staticmethod
    def setup_context(ctx, inputs, output):
        features, ctx.grid = inputs
        ctx.save_for_backward(features)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        from metamorph_kernels.rows.pooling_triton import pool_normalize_backward

        (features,) = ctx.saved_tensors
        return pool_normalize_backward(gradient, features, ctx.grid), None
