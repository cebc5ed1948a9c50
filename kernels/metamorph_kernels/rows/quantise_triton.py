"""Rounding to float8 in Triton: by rows, and by columns, which comes out transposed.

Absmax quantisation with a scale for each row or column, a GELU fused with it where asked.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.arguments import neighbouring_columns
from metamorph_kernels.compilation import Compilation
from metamorph_kernels.float8 import ALIGNMENT, E4M3, E5M2, padded
from metamorph_kernels.gelu import gelu

ROW_BLOCKS = (1024, 2048, 4096, 8192, 16_384)  # widths of rows, padded
NUMBERS_PER_WARP = 2048  # 64 a thread
TILE, TILE_WARPS = (128, 64), 4  # rows and columns that are turned at once
STRIP, STRIP_WARPS, STRIP_STEPS = (32, 128), 4, 8  # of which the largest are found, step by step
CHUNK = tl.constexpr(ALIGNMENT)


@triton.jit
def magnitude(x):
    """Bits of |x|; as integers they are in the order of magnitude, NaN above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(largest, LARGEST: tl.constexpr):
    """float32 scales for magnitudes of these bits."""
    scale = tl.div_rn(largest.to(tl.float32, bitcast=True), LARGEST)
    return tl.where(scale == 0, 1.0, scale)


@triton.jit
def to_float8(x, scale, dtype: tl.constexpr, LARGEST: tl.constexpr):
    return tl.clamp(x / scale, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL).to(dtype)


@triton.jit(do_not_specialize=["rows"])
def float8_rows(
    x_ptr,  # [N, C], rows `x_stride` apart
    values_ptr,  # float8 [N, C]
    scales_ptr,  # float32 [N]
    rows,
    columns,
    x_stride,
    LARGEST: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS whole rows, each read once."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (column < columns)
    x = tl.load(x_ptr + row[:, None] * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        x = gelu(x, x_ptr.dtype.element_ty)
    scale = scale_of(tl.max(magnitude(x), 1), LARGEST)
    tl.store(scales_ptr + row, scale, mask=row < rows)
    values = to_float8(x, scale[:, None], values_ptr.dtype.element_ty, LARGEST)
    tl.store(values_ptr + row[:, None] * columns + column, values, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def float8_column_maxima(
    x_ptr,  # [N, C], rows `x_stride` apart
    largest_ptr,  # int32 [C], zeros: bits of the largest magnitudes
    rows,
    columns,
    x_stride,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A maximum is the same in any order, so these atomics are deterministic."""
    first = tl.program_id(0).to(tl.int64) * (ROWS * STEPS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    largest = tl.zeros([ROWS, COLUMNS], tl.int32)
    for step in range(STEPS):
        row = first + step * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
        if GELU:
            x = gelu(x, x_ptr.dtype.element_ty)
        largest = tl.maximum(largest, magnitude(x))
    tl.atomic_max(largest_ptr + column, tl.max(largest, 0), mask=column < columns, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "chunks"])
def float8_columns(
    x_ptr,  # [N, C], rows `x_stride` apart
    largest_ptr,  # int32 [C]
    values_ptr,  # float8 [C, chunks * CHUNK]
    scales_ptr,  # float32 [C]
    rows,
    chunks,
    columns,
    x_stride,
    LARGEST: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of ROWS rows, turned; past the last row zeros."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < columns
    x = tl.load(
        x_ptr + row[:, None] * x_stride + column[None, :],
        mask=(row < rows)[:, None] & real[None, :],
        other=0.0,
    ).to(tl.float32)
    if GELU:
        x = gelu(x, x_ptr.dtype.element_ty)
    scale = scale_of(tl.load(largest_ptr + column, mask=real, other=0), LARGEST)
    tl.store(scales_ptr + column, scale, mask=real & (tl.program_id(0) == 0))
    values = to_float8(x, scale[None, :], values_ptr.dtype.element_ty, LARGEST)
    size = chunks * CHUNK  # a multiple of CHUNK, whatever it is: stores are of whole chunks
    tl.store(
        values_ptr + column.to(tl.int64)[:, None] * size + row[None, :],
        values.T,
        mask=real[:, None] & (row < size)[None, :],
    )


@torch.library.custom_op("metamorph_kernels::float8_rows", mutates_args=())
def quantise_rows(x: Tensor, dtype: torch.dtype, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """`float8.quantise_rows` of C in multiples of ALIGNMENT."""
    rows, columns = x.shape
    values = torch.empty((rows, columns), dtype=dtype, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows == 0:
        return values, scales
    x = neighbouring_columns(x)
    block, rows_at_once, num_warps = row_block(columns)
    with torch.cuda.device_of(x):
        float8_rows[(triton.cdiv(rows, rows_at_once),)](
            x,
            values,
            scales,
            rows,
            columns,
            x.stride(0),
            LARGEST=torch.finfo(dtype).max,
            GELU=gelu,
            ROWS=rows_at_once,
            BLOCK=block,
            num_warps=num_warps,
        )
    return values, scales


@quantise_rows.register_fake
def _(x, dtype, gelu=False):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("metamorph_kernels::float8_columns", mutates_args=())
def quantise_columns(x: Tensor, dtype: torch.dtype, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """`float8.quantise_columns` by two passes over x: maxima, then values."""
    rows, columns = x.shape
    values = torch.empty((columns, padded(rows)), dtype=dtype, device=x.device)
    scales = torch.empty(columns, dtype=torch.float32, device=x.device)
    largest = torch.zeros(columns, dtype=torch.int32, device=x.device)
    x = neighbouring_columns(x)
    with torch.cuda.device_of(x):
        if rows:
            high, wide = STRIP
            grid = (triton.cdiv(rows, high * STRIP_STEPS), triton.cdiv(columns, wide))
            float8_column_maxima[grid](
                x,
                largest,
                rows,
                columns,
                x.stride(0),
                GELU=gelu,
                ROWS=high,
                COLUMNS=wide,
                STEPS=STRIP_STEPS,
                num_warps=STRIP_WARPS,
            )
        high, wide = TILE
        grid = (triton.cdiv(values.shape[1], high), triton.cdiv(columns, wide))
        float8_columns[grid](
            x,
            largest,
            values,
            scales,
            rows,
            values.shape[1] // ALIGNMENT,
            columns,
            x.stride(0),
            LARGEST=torch.finfo(dtype).max,
            GELU=gelu,
            ROWS=high,
            COLUMNS=wide,
            num_warps=TILE_WARPS,
        )
    return values, scales


@quantise_columns.register_fake
def _(x, dtype, gelu=False):
    rows, columns = x.shape
    values = x.new_empty((columns, padded(rows)), dtype=dtype)
    return values, x.new_empty(columns, dtype=torch.float32)


def row_block(columns: int) -> tuple[int, int, int]:
    """Columns and rows of one program of `float8_rows`, and its warps."""
    block = max(triton.next_power_of_2(columns), ROW_BLOCKS[0])
    return block, max(NUMBERS_PER_WARP // block, 1), max(block // NUMBERS_PER_WARP, 1)


def compilations() -> Iterator[Compilation]:
    """The three kernels in every shipped configuration."""
    kinds = ((E4M3, False), (E4M3, True), (E5M2, False))
    for element, (dtype, of_gelu) in product(("bf16", "fp16", "fp32"), kinds):
        name = f"{element}{' gelu' if of_gelu else ''}"
        x = {"x_ptr": f"*{element}"}
        sizes = {"rows": "i32", "columns": "i32:16", "x_stride": "i32:16", "GELU": of_gelu}
        values = "fp8e4nv" if dtype == E4M3 else "fp8e5"
        results = {"values_ptr": f"*{values}", "scales_ptr": "*fp32"}
        largest = torch.finfo(dtype).max
        for width in ROW_BLOCKS:
            block, rows_at_once, num_warps = row_block(width)
            yield _compilation(
                float8_rows,
                f"{name} to {values} C<={width}",
                x | results | sizes | {"LARGEST": largest, "ROWS": rows_at_once, "BLOCK": block},
                num_warps,
            )
        high, wide = TILE
        yield _compilation(
            float8_columns,
            f"{name} to {values} {high}x{wide}",
            x
            | {"largest_ptr": "*i32", "chunks": "i32", "LARGEST": largest}
            | results
            | sizes
            | {"ROWS": high, "COLUMNS": wide},
            TILE_WARPS,
        )
        if dtype == E4M3:
            high, wide = STRIP
            tile = {"ROWS": high, "COLUMNS": wide, "STEPS": STRIP_STEPS}
            yield _compilation(
                float8_column_maxima,
                f"{name} {high}x{wide}",
                x | {"largest_ptr": "*i32"} | sizes | tile,
                STRIP_WARPS,
            )


def _compilation(
    kernel: triton.JITFunction, configuration: str, arguments: dict, num_warps: int
) -> Compilation:
    ordered = {name: arguments[name] for name in kernel.arg_names}
    return Compilation(kernel, configuration, ordered, num_warps, num_stages=1, tensor_cores=False)
