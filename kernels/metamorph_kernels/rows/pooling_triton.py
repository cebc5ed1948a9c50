"""Pooled visual tokens in Triton: four tokens read, weighted and normalised in one pass.

A gather of bilinear taps fused with L2 normalisation.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.arguments import neighbouring_columns
from metamorph_kernels.compilation import EVERY_ARCHITECTURE, HOPPER_ONLY, Compilation

SHORTEST = tl.constexpr(math.sqrt(torch.finfo(torch.float32).tiny))
# By the width of a token, padded to a power of two: 16 numbers a thread of each token.
NUM_WARPS = {128: 1, 256: 1, 512: 1, 1024: 2, 2048: 4, 4096: 8, 8192: 16}


@triton.jit
def taps(out, SIDE: tl.constexpr, GRID: tl.constexpr):
    """The two lines of the input that line `out` of the output reads, and the upper one's weight.

    Half-pixel centres, clamped at the edges; exact but for the division. The upper one is the lower
    where its weight is 0: 0 times NaN would be NaN.
    """
    source = tl.maximum((2 * out + 1) * SIDE - GRID, 0)  # 2 GRID times the centre of `out`
    lower = source // (2 * GRID)
    rest = source - lower * (2 * GRID)
    upper = tl.minimum(lower + tl.minimum(rest, 1), SIDE - 1)
    return lower, upper, rest.to(tl.float32) / (2 * GRID)


@triton.jit
def weight_of(line, out, SIDE: tl.constexpr, GRID: tl.constexpr):
    """The weight that line `out` of the output gives to a line of the input."""
    lower, upper, weight = taps(out, SIDE, GRID)
    return tl.where(line == lower, 1.0 - weight, 0.0) + tl.where(line == upper, weight, 0.0)


@triton.jit
def readers(line, SIDE: tl.constexpr, GRID: tl.constexpr):
    """First and end of the lines of the output whose centre is within one line of `line`."""
    first = tl.maximum(GRID * (2 * line - 1) - SIDE, 0) // (2 * SIDE)
    end = tl.maximum(GRID * (2 * line + 3) - SIDE, 0) // (2 * SIDE) + 1
    return first, tl.minimum(end, GRID)


@triton.jit
def pooled(
    image_ptr,  # [SIDE * SIDE, C]
    token_stride,
    out_row,
    out_column,
    column,
    mask,
    SIDE: tl.constexpr,
    GRID: tl.constexpr,
):
    """float32 [BLOCK]: the weighted sum of four tokens."""
    top, bottom, down = taps(out_row, SIDE, GRID)
    left, right, across = taps(out_column, SIDE, GRID)
    corner = image_ptr + (top * SIDE + left).to(tl.int64) * token_stride
    top_left = tl.load(corner + column, mask=mask, other=0.0).to(tl.float32)
    corner = image_ptr + (top * SIDE + right).to(tl.int64) * token_stride
    top_right = tl.load(corner + column, mask=mask, other=0.0).to(tl.float32)
    corner = image_ptr + (bottom * SIDE + left).to(tl.int64) * token_stride
    bottom_left = tl.load(corner + column, mask=mask, other=0.0).to(tl.float32)
    corner = image_ptr + (bottom * SIDE + right).to(tl.int64) * token_stride
    bottom_right = tl.load(corner + column, mask=mask, other=0.0).to(tl.float32)
    upper = top_left * (1.0 - across) + top_right * across
    lower = bottom_left * (1.0 - across) + bottom_right * across
    return upper * (1.0 - down) + lower * down


@triton.jit
def inverse_length(values):
    """1 / norm of a vector, or 0 where it has no direction."""
    norm = tl.sqrt(tl.sum(values * values, 0))
    empty = norm < SHORTEST
    return tl.where(empty, 0.0, 1.0 / tl.where(empty, 1.0, norm))


@triton.jit
def pool_forward(
    features_ptr,  # [B, SIDE * SIDE, C]
    out_ptr,  # [B, GRID * GRID, C]
    image_stride,
    token_stride,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    GRID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token of the output."""
    token = tl.program_id(0).to(tl.int64)
    image = token // (GRID * GRID)
    out = (token % (GRID * GRID)).to(tl.int32)
    column = tl.arange(0, BLOCK)
    mask = column < COLUMNS
    values = pooled(
        features_ptr + image * image_stride,
        token_stride,
        out // GRID,
        out % GRID,
        column,
        mask,
        SIDE,
        GRID,
    )
    tl.store(out_ptr + token * COLUMNS + column, values * inverse_length(values), mask=mask)


@triton.jit
def pool_backward(
    gradient_ptr,  # [B, GRID * GRID, C]
    features_ptr,  # [B, SIDE * SIDE, C]
    features_gradient_ptr,  # [B, SIDE * SIDE, C]
    image_stride,
    token_stride,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    GRID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token of the input: the sum over the outputs that read it, always in the same order."""
    token = tl.program_id(0).to(tl.int64)
    image = token // (SIDE * SIDE)
    place = (token % (SIDE * SIDE)).to(tl.int32)
    column = tl.arange(0, BLOCK)
    mask = column < COLUMNS
    image_ptr = features_ptr + image * image_stride
    accumulator = tl.zeros([BLOCK], tl.float32)
    first_row, end_row = readers(place // SIDE, SIDE, GRID)
    first_column, end_column = readers(place % SIDE, SIDE, GRID)
    for out_row in range(first_row, end_row):
        for out_column in range(first_column, end_column):
            weight = weight_of(place // SIDE, out_row, SIDE, GRID) * weight_of(
                place % SIDE, out_column, SIDE, GRID
            )
            if weight != 0.0:
                values = pooled(
                    image_ptr, token_stride, out_row, out_column, column, mask, SIDE, GRID
                )
                inverse = inverse_length(values)
                unit = values * inverse
                out = image * (GRID * GRID) + out_row * GRID + out_column
                gradient = tl.load(gradient_ptr + out * COLUMNS + column, mask=mask, other=0.0)
                gradient = gradient.to(tl.float32)
                across = gradient - unit * tl.sum(unit * gradient, 0)
                accumulator += across * (inverse * weight)
    tl.store(features_gradient_ptr + token * COLUMNS + column, accumulator, mask=mask)


@torch.library.custom_op("metamorph_kernels::pool_normalize", mutates_args=())
def pool_normalize_forward(features: Tensor, grid: int) -> Tensor:
    """[B, grid * grid, C] of checked features [B, N, C]."""
    batch, _, columns = features.shape
    features = neighbouring_columns(features)
    out = features.new_empty(batch, grid * grid, columns)
    with torch.cuda.device_of(features):
        pool_forward[(batch * grid * grid,)](
            features, out, features.stride(0), features.stride(1), **_layout(features, grid)
        )
    return out


@pool_normalize_forward.register_fake
def _(features, grid):
    return features.new_empty(features.shape[0], grid * grid, features.shape[2])


@torch.library.custom_op("metamorph_kernels::pool_normalize_backward", mutates_args=())
def pool_normalize_backward(gradient: Tensor, features: Tensor, grid: int) -> Tensor:
    """The gradient [B, N, C] of the features, from that of the result, [B, grid * grid, C]."""
    batch, tokens, _ = features.shape
    features = neighbouring_columns(features)
    out = features.new_empty(features.shape)
    with torch.cuda.device_of(features):
        pool_backward[(batch * tokens,)](
            gradient.contiguous(),
            features,
            out,
            features.stride(0),
            features.stride(1),
            **_layout(features, grid),
        )
    return out


@pool_normalize_backward.register_fake
def _(gradient, features, grid):
    return features.new_empty(features.shape)


def _layout(features: Tensor, grid: int) -> dict[str, int]:
    """The constants and launch options of both kernels."""
    block = max(triton.next_power_of_2(features.shape[2]), min(NUM_WARPS))
    return {
        "COLUMNS": features.shape[2],
        "SIDE": math.isqrt(features.shape[1]),
        "GRID": grid,
        "BLOCK": block,
        "num_warps": NUM_WARPS[block],
    }


def compilations() -> Iterator[Compilation]:
    """Both kernels at widths of every class, for the 27 x 27 tokens of SigLIP pooled to 8 x 8.

    The widest in bfloat16 are compiled for each architecture.
    """
    widths = (1, 96, 768, 1152, 4096, 8192)
    for element, columns in product(("bf16", "fp16", "fp32"), widths):
        everywhere = element == "bf16" and columns == max(widths)
        features = torch.empty(0, 27 * 27, columns, device="meta")
        layout = _layout(features, grid=8)
        num_warps = layout.pop("num_warps")
        stride = "i32:16" if columns % 16 == 0 else "i32"
        tensors = {
            pool_forward: ("features_ptr", "out_ptr"),
            pool_backward: ("gradient_ptr", "features_ptr", "features_gradient_ptr"),
        }
        for kernel, names in tensors.items():
            yield Compilation(
                kernel=kernel,
                configuration=f"{element} C={columns} 27x27 to 8x8",
                arguments={
                    **dict.fromkeys(names, f"*{element}"),
                    "image_stride": stride,
                    "token_stride": stride,
                    **layout,
                },
                num_warps=num_warps,
                num_stages=1,
                tensor_cores=False,
                architectures=EVERY_ARCHITECTURE if everywhere else HOPPER_ONLY,
            )
