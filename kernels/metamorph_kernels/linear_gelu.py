"""Triton kernels of a linear layer and its exact GELU: in the epilogue of a product, both ways."""

import triton
import triton.language as tl

WIDTH = tl.constexpr(32)  # columns of a step of an epilogue
ROOT_HALF = tl.constexpr(0.5**0.5)
INVERSE_ROOT_TWO_PI = tl.constexpr((2 * 3.141592653589793) ** -0.5)


@triton.jit
def normal_distribution(z):
    """The probability of less than z, float32, under the standard normal distribution."""
    return 0.5 + 0.5 * tl.erf(z * ROOT_HALF)


@triton.jit
def halves(block):
    """The left and the right half of the columns of a block [M, N]."""
    M: tl.constexpr = block.shape[0]
    N: tl.constexpr = block.shape[1]
    return block.reshape(M, 2, N // 2).permute(0, 2, 1).split()


@triton.jit
def strips(block):
    """A block [M, N], N = 32, 64 or 128, in strips of WIDTH columns, from left to right.

    So an epilogue needs few registers, and little of the memory that holds the next loads.
    """
    N: tl.constexpr = block.shape[1]
    if N == WIDTH:
        blocks = (block,)
    elif N == 2 * WIDTH:
        blocks = halves(block)
    else:
        left, right = halves(block)
        blocks = halves(left) + halves(right)
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

    Programs stay on their processor and take every so many tiles: all cost the same.
    """
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
        blocks = strips(total)
        for strip in tl.static_range(BLOCK_N // WIDTH):
            first = feature + strip * WIDTH
            column = first + tl.arange(0, WIDTH)
            bias = tl.load(bias_ptr + column, mask=column < features, other=0.0)
            state = (blocks[strip] + bias.to(tl.float32)[None, :]).to(out_desc.dtype)
            if state_desc is not None:
                state_desc.store([row, first], state)
            state = state.to(tl.float32)
            out_desc.store([row, first], (state * normal_distribution(state)).to(out_desc.dtype))


@triton.jit(do_not_specialize=["rows"])
def linear_gelu_gradient(
    gradient_desc,  # of the output, [N, O] in blocks [BLOCK_M, BLOCK_K]
    weight_desc,  # [O, F] in blocks [BLOCK_K, BLOCK_N]
    state_desc,  # [N, F] in blocks [BLOCK_M, WIDTH]
    state_gradient_desc,  # as state_desc
    activation_desc,  # as state_desc, or None
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
        blocks = strips(total)
        for strip in tl.static_range(BLOCK_N // WIDTH):
            first = feature + strip * WIDTH
            state = state_desc.load([row, first]).to(tl.float32)
            below = normal_distribution(state)
            density = INVERSE_ROOT_TWO_PI * tl.exp(-0.5 * state * state)
            # Rows past the last have a gradient of zeros.
            state_gradient = blocks[strip] * (below + state * density)
            state_gradient_desc.store([row, first], state_gradient.to(state_gradient_desc.dtype))
            if activation_desc is not None:
                activation_desc.store([row, first], (state * below).to(activation_desc.dtype))
            if sums_ptr is not None:
                column = first + tl.arange(0, WIDTH)
                sums = sums_ptr + (row // BLOCK_M).to(tl.int64) * features + column
                tl.store(sums, tl.sum(state_gradient, 0), mask=column < features)
