"""Float8 in Triton: the functions of `float8` as kernels; here the product of two matrices.

A persistent GEMM with a scale for each row and column, applied in its epilogue.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.descriptors import describable
from metamorph_kernels.gelu import gelu_and_slope
from metamorph_kernels.multiprocessors import multiprocessors
from metamorph_kernels.rows.quantise_triton import quantise_columns, quantise_rows

__all__ = ["quantise_columns", "quantise_rows", "scaled_product"]

WIDTH = tl.constexpr(32)  # columns of a step of an epilogue
BAND = 8  # tiles one above the other that are computed before those to their right


@dataclass(frozen=True)
class Tiles:
    """Half the rows, columns and inner steps of one tile; programs that share an SM."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    residents: int


# Wide tiles read least. Of narrow ones two share an SM: one adds up or stores what it has
# while the tensor cores work for the other.
WIDE = Tiles(128, 128, 128, num_warps=8, num_stages=4, residents=1)
NARROW = Tiles(64, 128, 128, num_warps=4, num_stages=3, residents=2)


@triton.jit
def halves(block):
    """The left and the right half of the columns of a block [M, N]."""
    M: tl.constexpr = block.shape[0]
    N: tl.constexpr = block.shape[1]
    return block.reshape(M, 2, N // 2).permute(0, 2, 1).split()


@triton.jit
def strips(block, WIDTH: tl.constexpr):
    """A block [M, N] in strips of WIDTH columns, from left to right; N a power of two times WIDTH.

    So an epilogue needs few registers, and little of the memory that holds the next loads.
    """
    if block.shape[1] == WIDTH:
        blocks = (block,)
    else:
        left, right = halves(block)
        blocks = strips(left, WIDTH) + strips(right, WIDTH)
    return blocks


@triton.jit
def store_scaled(
    total, row, column, a_scales_ptr, b_scales, bias, before_gelu_desc, out_desc, rows
):
    """Half a tile, in strips."""
    line = row + tl.arange(0, total.shape[0])
    a_scales = tl.load(a_scales_ptr + line, mask=line < rows, other=0.0)
    total = total * a_scales[:, None] * b_scales[None, :]
    if bias is not None:
        total += bias[None, :]
    blocks = strips(total, WIDTH)
    for strip in tl.static_range(total.shape[1] // WIDTH):
        first = column + strip * WIDTH
        out = blocks[strip].to(out_desc.dtype)
        if before_gelu_desc is not None:
            z = before_gelu_desc.load([row, first]).to(tl.float32)
            _, slope = gelu_and_slope(z, before_gelu_desc.dtype)
            out = (out.to(tl.float32) * slope).to(out_desc.dtype)
        out_desc.store([row, first], out)


@triton.jit(do_not_specialize=["rows", "columns", "depth"])
def float8_product(
    a_desc,  # float8 [M, K] in blocks [BLOCK_M, BLOCK_K]
    b_desc,  # float8 [N, K] in blocks [BLOCK_N, BLOCK_K]
    a_scales_ptr,  # float32 [M]
    b_scales_ptr,  # float32 [N]
    bias_ptr,  # [N], or None
    before_gelu_desc,  # [M, N] in blocks [BLOCK_M, WIDTH], or None
    out_desc,  # [M, N] in blocks [BLOCK_M, WIDTH]
    rows,
    columns,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
):
    """out = a b^T with both scales and the bias, then times gelu' of what was before the GELU.

    Programs stay on their SM and take every so many tiles: all cost the same.

    Hopper's tensor cores keep about 14 bits of a sum of float8 products, so the sums of BLOCK_K are
    added up outside, in float32. A tile is two halves, one above the other, because sums so far and
    fresh ones of all of it would not fit the registers.
    """
    row_tiles = tl.cdiv(rows, 2 * BLOCK_M)
    column_tiles = tl.cdiv(columns, BLOCK_N)
    for tile in tl.range(
        tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=True
    ):
        top = tile // (BAND * column_tiles) * BAND
        height = tl.minimum(row_tiles - top, BAND)
        tile_in_band = tile % (BAND * column_tiles)
        row = (top + tile_in_band % height) * (2 * BLOCK_M)
        column = tile_in_band // height * BLOCK_N
        upper = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        lower = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(tl.cdiv(depth, BLOCK_K)):
            b = b_desc.load([column, step * BLOCK_K]).T
            upper += tl.dot(a_desc.load([row, step * BLOCK_K]), b)
            lower += tl.dot(a_desc.load([row + BLOCK_M, step * BLOCK_K]), b)
        position = column + tl.arange(0, BLOCK_N)
        real = position < columns
        b_scales = tl.load(b_scales_ptr + position, mask=real, other=0.0)
        bias = None
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + position, mask=real, other=0.0).to(tl.float32)
        for half in tl.static_range(2):
            store_scaled(
                lower if half else upper,
                row + half * BLOCK_M,
                column,
                a_scales_ptr,
                b_scales,
                bias,
                before_gelu_desc,
                out_desc,
                rows,
            )


@torch.library.custom_op("metamorph_kernels::float8_product", mutates_args=())
def scaled_product(
    a: Tensor,  # float8 [M, K]
    a_scales: Tensor,  # float32 [M]
    b: Tensor,  # float8 [N, K]
    b_scales: Tensor,  # float32 [N]
    dtype: torch.dtype,
    bias: Tensor | None = None,  # [N]
    before_gelu: Tensor | None = None,  # [M, N] in `dtype`
) -> Tensor:
    """`float8.scaled_product` of K and N in multiples of 16."""
    rows, depth = a.shape
    columns = len(b)
    out = torch.empty((rows, columns), dtype=dtype, device=a.device)
    if rows == 0:
        return out
    sms = multiprocessors(a.device)
    tiles, count = choose(rows, columns, sms, before_gelu is not None)
    strip = [tiles.block_m, WIDTH.value]
    if before_gelu is not None:
        before_gelu = TensorDescriptor.from_tensor(describable(before_gelu), strip)
    with torch.cuda.device_of(a):
        float8_product[(min(count, sms * tiles.residents),)](
            TensorDescriptor.from_tensor(a, [tiles.block_m, tiles.block_k]),
            TensorDescriptor.from_tensor(b, [tiles.block_n, tiles.block_k]),
            a_scales,
            b_scales,
            None if bias is None else bias.contiguous(),
            before_gelu,
            TensorDescriptor.from_tensor(out, strip),
            rows,
            columns,
            depth,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            BAND=BAND,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out


@scaled_product.register_fake
def _(a, a_scales, b, b_scales, dtype, bias=None, before_gelu=None):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def choose(rows: int, columns: int, sms: int, with_gelu: bool) -> tuple[Tiles, int]:
    """Wide tiles where there are two for each SM, else narrow ones; and how many.

    Narrow ones with a GELU, which takes long: tensor cores should not wait for it.
    """
    for tiles in (NARROW,) if with_gelu else (WIDE, NARROW):
        count = triton.cdiv(rows, 2 * tiles.block_m) * triton.cdiv(columns, tiles.block_n)
        if count >= 2 * sms:
            break
    return tiles, count


def compilations() -> Iterator[Compilation]:
    """The product in every shipped configuration."""
    kinds = {
        "forward bias": ("fp8e4nv", True, False),
        "forward": ("fp8e4nv", False, False),
        "gradient": ("fp8e5", False, False),
        "gradient through gelu": ("fp8e5", False, True),
    }
    for tiles, element, (name, kind) in product(
        (WIDE, NARROW), ("bf16", "fp16", "fp32"), kinds.items()
    ):
        a, has_bias, has_gelu = kind
        if has_gelu and tiles == WIDE:
            continue
        strip = descriptor_type(element, tiles.block_m, WIDTH.value)
        yield Compilation(
            kernel=float8_product,
            configuration=f"{name} {element} {2 * tiles.block_m}x{tiles.block_n}x{tiles.block_k}",
            arguments={
                "a_desc": descriptor_type(a, tiles.block_m, tiles.block_k),
                "b_desc": descriptor_type("fp8e4nv", tiles.block_n, tiles.block_k),
                "a_scales_ptr": "*fp32",
                "b_scales_ptr": "*fp32",
                "bias_ptr": f"*{element}" if has_bias else None,
                "before_gelu_desc": strip if has_gelu else None,
                "out_desc": strip,
                "rows": "i32",
                "columns": "i32",
                "depth": "i32",
                "BLOCK_M": tiles.block_m,
                "BLOCK_N": tiles.block_n,
                "BLOCK_K": tiles.block_k,
                "BAND": BAND,
            },
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            residents=tiles.residents,
        )
