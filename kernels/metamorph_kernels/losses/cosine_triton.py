"""The cosine loss in Triton: losses and gradients of whole rows, each number read once.

Row reductions, one program a row, forward and backward fused.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.arguments import neighbouring_columns

SCALED = 8192  # numbers of a program of `scale`: few programs, since most have nothing to do
SCALE_WARPS = 8
SMALLEST_NORMAL = tl.constexpr(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Tiles:
    """How many rows one program takes, and with how many warps."""

    rows: int
    num_warps: int


# By the width of a row, padded to a power of two. 32 numbers a thread of each tensor; 64 at 2048,
# for SigLIP's 1152, so that one warp holds a row and sums it without a barrier.
TILES = {
    128: Tiles(rows=8, num_warps=1),
    256: Tiles(rows=4, num_warps=1),
    512: Tiles(rows=2, num_warps=1),
    1024: Tiles(rows=1, num_warps=1),
    2048: Tiles(rows=1, num_warps=1),
    4096: Tiles(rows=1, num_warps=4),
    8192: Tiles(rows=1, num_warps=8),
}


@triton.jit
def inverse_norm(rows):
    """[ROWS] of float32 [ROWS, BLOCK]; 0 for a row without direction."""
    squares = tl.sum(rows * rows, 1)
    directed = squares >= SMALLEST_NORMAL
    return tl.where(directed, tl.rsqrt(tl.where(directed, squares, 1.0)), 0.0)


@triton.jit
def cosine_forward(
    prediction_ptr,  # [N, C]
    target_ptr,  # [M, C]
    index_ptr,  # int64 [N], or None where row i belongs to row i
    losses_ptr,  # float32 [N]
    gradient_ptr,  # [N, C], or None
    count_ptr,  # int64 scalar by which to divide the gradient, or None
    rows,
    targets,
    prediction_stride,
    target_stride,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MEAN: tl.constexpr,
):
    """Losses of ROWS rows, and gradients of their sum or, with MEAN, of their mean.

    Ignored rows are not read. A row whose index is too large becomes NaN.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    real = row < rows
    target_row = row
    counted = real
    if index_ptr is not None:
        target_row = tl.load(index_ptr + row, mask=real, other=-1)
        counted = (target_row >= 0) & (target_row < targets)
    mask = counted[:, None] & (column < COLUMNS)
    prediction = tl.load(
        prediction_ptr + row[:, None] * prediction_stride + column, mask=mask, other=0.0
    ).to(tl.float32)  # [ROWS, BLOCK]
    target = tl.load(
        target_ptr + target_row[:, None] * target_stride + column, mask=mask, other=0.0
    ).to(tl.float32)

    inverse = inverse_norm(prediction)
    if index_ptr is not None:
        inverse = tl.where(target_row < targets, inverse, float("nan"))
    # Products of unit vectors: those of the rows as they are could overflow.
    unit_prediction = prediction * inverse[:, None]
    unit_target = target * inverse_norm(target)[:, None]
    cosine = tl.sum(unit_prediction * unit_target, 1)
    losses = tl.where(target_row < 0, 0.0, 1.0 - cosine)
    tl.store(losses_ptr + row, losses, mask=real)
    if gradient_ptr is not None:
        across = cosine[:, None] * unit_prediction - unit_target  # at right angles to prediction
        factor = inverse
        if MEAN:
            count = rows if count_ptr is None else tl.load(count_ptr)
            factor /= tl.maximum(count, 1).to(tl.float32)
        tl.store(
            gradient_ptr + row[:, None] * COLUMNS + column,
            across * factor[:, None],
            mask=real[:, None] & (column < COLUMNS),
        )


@triton.jit
def cosine_scale(
    matrix_ptr,  # [N, C]
    factors_ptr,  # float32 [N]
    out_ptr,  # [N, C]
    rows,
    factors_stride,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows, each times its factor."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    real = row < rows
    mask = real[:, None] & (column < COLUMNS)
    place = row[:, None] * COLUMNS + column
    factors = tl.load(factors_ptr + row * factors_stride, mask=real, other=0.0)
    values = tl.load(matrix_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, values * factors[:, None], mask=mask)


@triton.jit
def scale(
    values_ptr,  # dense
    factor_ptr,  # float32 scalar
    size,
    BLOCK: tl.constexpr,
):
    """BLOCK numbers times the factor, in place; a factor of 1 reads none of them."""
    factor = tl.load(factor_ptr)
    if factor == 1.0:
        return
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    values = tl.load(values_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(values_ptr + place, values * factor, mask=mask)


@torch.library.custom_op("metamorph_kernels::cosine_rows", mutates_args=())
def cosine_rows(
    prediction: Tensor,  # [N, C]
    target: Tensor,  # [M, C]
    target_index: Tensor | None,  # int64 [N]
    with_gradient: bool,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """Losses float32 [N], and gradients [N, C] of their sum or mean or, without gradient, [0]."""
    losses, gradient = _results(prediction, with_gradient)
    indexed_mean = with_gradient and mean and target_index is not None
    count = (target_index >= 0).sum() if indexed_mean else None
    rows, columns = prediction.shape
    prediction, target = map(neighbouring_columns, (prediction, target))
    tiles, layout = row_layout(columns)
    with torch.cuda.device_of(prediction):
        cosine_forward[(triton.cdiv(rows, tiles.rows),)](
            prediction,
            target,
            None if target_index is None else target_index.contiguous(),
            losses,
            gradient if with_gradient else None,
            count,
            rows,
            target.shape[0],
            prediction.stride(0),
            target.stride(0),
            MEAN=with_gradient and mean,
            **layout,
        )
    return losses, gradient


@cosine_rows.register_fake
def _(prediction, target, target_index, with_gradient, mean):
    return _results(prediction, with_gradient)


@torch.library.custom_op("metamorph_kernels::scale_rows", mutates_args=())
def scale_rows(
    matrix: Tensor,  # [N, C]
    factors: Tensor,  # float32 [N]
    dtype: torch.dtype,
) -> Tensor:
    """The matrix in `dtype`, [N, C], each row times its factor."""
    rows, columns = matrix.shape
    out = torch.empty((rows, columns), dtype=dtype, device=matrix.device)
    tiles, layout = row_layout(columns)
    with torch.cuda.device_of(matrix):
        cosine_scale[(triton.cdiv(rows, tiles.rows),)](
            matrix.contiguous(), factors, out, rows, factors.stride(0), **layout
        )
    return out


@scale_rows.register_fake
def _(matrix, factors, dtype):
    return torch.empty(matrix.shape, dtype=dtype, device=matrix.device)


@torch.library.custom_op("metamorph_kernels::scale_in_place", mutates_args=("values",))
def scale_in_place(
    values: Tensor,  # dense
    factor: Tensor,  # float32 scalar
) -> None:
    """The values times the factor; where it is 1 they are not read."""
    with torch.cuda.device_of(values):
        scale[(triton.cdiv(values.numel(), SCALED),)](
            values, factor, values.numel(), BLOCK=SCALED, num_warps=SCALE_WARPS
        )


def _results(prediction: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Empty losses and gradients.

    Beside float16 the gradients are float32: before they meet the cotangent they can be too large
    or too small for it.
    """
    losses = torch.empty(prediction.shape[0], dtype=torch.float32, device=prediction.device)
    dtype = torch.float32 if prediction.dtype == torch.float16 else prediction.dtype
    shape = prediction.shape if with_gradient else (0,)
    return losses, torch.empty(shape, dtype=dtype, device=prediction.device)


def row_layout(columns: int) -> tuple[Tiles, dict[str, int]]:
    """The tiles for rows of this width, and the constants and launch options of a kernel."""
    block = max(triton.next_power_of_2(columns), min(TILES))
    tiles = TILES[block]
    return tiles, {
        "COLUMNS": columns,
        "ROWS": tiles.rows,
        "BLOCK": block,
        "num_warps": tiles.num_warps,
    }
