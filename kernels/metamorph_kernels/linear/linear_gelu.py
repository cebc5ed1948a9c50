"""Triton kernels of a linear layer and its exact GELU, both ways.

Persistent GEMMs with a fused epilogue: TMA brings the operands of warp-group products, bias and
GELU are applied to the accumulator before it is stored.
"""

import triton
import triton.language as tl

from metamorph_kernels.gelu import gelu, gelu_and_slope


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


@triton.jit(do_not_specialize=["rows"])
def linear_gelu(
    x_desc,  # [N, I] in blocks [BLOCK_M, BLOCK_K]
    weight_desc,  # [F, I] in blocks [BLOCK_N, BLOCK_K]
    bias_ptr,  # [F]
    state_desc,  # [N, F] in blocks [BLOCK_M, WIDTH], or None
    out_desc,  # [N, F] in blocks [BLOCK_M, WIDTH]
    rows,
    features,
    inner,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """state = x weight^T + bias and out = gelu(state), of the state as it is stored.

    Programs stay on their SM and take every so many tiles: all cost the same.
    """
    tl.assume(inner > 0)  # else there is a copy of all of it for sums of nothing
    features = features // 4 * 4  # as they are: neighbours pass or fail a mask together
    feature_tiles = tl.cdiv(features, BLOCK_N)
    tiles = tl.cdiv(rows, BLOCK_M) * feature_tiles
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row = (tile // feature_tiles) * BLOCK_M
        feature = (tile % feature_tiles) * BLOCK_N
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(tl.cdiv(inner, BLOCK_K)):
            x = x_desc.load([row, step * BLOCK_K])
            weight = weight_desc.load([feature, step * BLOCK_K])
            total = tl.dot(x, weight.T, total, input_precision="ieee")
        WIDTH: tl.constexpr = out_desc.block_shape[1]
        blocks = strips(total, WIDTH)
        for strip in tl.static_range(BLOCK_N // WIDTH):
            first = feature + strip * WIDTH
            column = first + tl.arange(0, WIDTH)
            bias = tl.load(bias_ptr + column, mask=column < features, other=0.0)
            state = (blocks[strip] + bias.to(tl.float32)[None, :]).to(out_desc.dtype)
            if state_desc is not None:
                state_desc.store([row, first], state)
            out = gelu(state.to(tl.float32), out_desc.dtype)
            out_desc.store([row, first], out.to(out_desc.dtype))


@triton.jit(do_not_specialize=["rows"])
def linear_gelu_gradient(
    gradient_desc,  # of the output, [N, O] in blocks [BLOCK_M, BLOCK_K]
    weight_desc,  # [O, F] in blocks [BLOCK_K, BLOCK_N]
    state_desc,  # [N, F] in blocks [BLOCK_M, PART], PART a multiple of WIDTH
    state_gradient_desc,  # [N, F] in blocks [BLOCK_M, WIDTH]
    activation_desc,  # as state_gradient_desc, or None
    sums_ptr,  # float32 [ceil(N / BLOCK_M), F], or None
    rows,
    features,
    inner,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradient of the state, (gradient weight) gelu'(state), and its sums over the rows of a tile.

    With them gelu(state) once more, so that nobody need keep it from the forward.
    """
    tl.assume(inner > 0)  # as above
    feature_tiles = tl.cdiv(features, BLOCK_N)
    tiles = tl.cdiv(rows, BLOCK_M) * feature_tiles
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row = (tile // feature_tiles) * BLOCK_M
        feature = (tile % feature_tiles) * BLOCK_N
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(tl.cdiv(inner, BLOCK_K)):
            gradient = gradient_desc.load([row, step * BLOCK_K])
            weight = weight_desc.load([step * BLOCK_K, feature])
            total = tl.dot(gradient, weight, total, input_precision="ieee")
        WIDTH: tl.constexpr = state_gradient_desc.block_shape[1]
        blocks = strips(total, WIDTH)
        PART: tl.constexpr = state_desc.block_shape[1]  # in one piece it would spill registers
        for strip in tl.static_range(BLOCK_N // WIDTH):
            first = feature + strip * WIDTH
            if strip * WIDTH % PART == 0:
                states = strips(state_desc.load([row, first]), WIDTH)
            activation, slope = gelu_and_slope(
                states[strip % (PART // WIDTH)].to(tl.float32), state_desc.dtype
            )
            state_gradient = blocks[strip] * slope  # of rows past the last: zeros
            # Apart they would get a layout each, and the GELU be computed in both.
            state_gradient, activation = tl.join(state_gradient, activation).split()
            state_gradient_desc.store([row, first], state_gradient.to(state_gradient_desc.dtype))
            if activation_desc is not None:
                activation_desc.store([row, first], activation.to(activation_desc.dtype))
            if sums_ptr is not None:
                column = first + tl.arange(0, WIDTH)
                sums = sums_ptr + (row // BLOCK_M).to(tl.int64) * features + column
                tl.store(sums, tl.sum(state_gradient, 0), mask=column < features)
