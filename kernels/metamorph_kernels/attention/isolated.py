"""Tiles of interval attention once more, one key or query at a time, where a number is not finite.

A tile multiplies whole blocks, and gives what a row may not see a weight of 0; but 0 times NaN or
infinity is NaN, and so a bad number in one document would reach its neighbours in the tile. Every
such product ends in a sum that is not finite. The kernels look at their sums once a tile, and
where one is not finite they compute the tile again with these functions, which never multiply what
is hidden. That is slow and, with finite numbers, never done. Persistent kernels do it when their
other tiles are done, so that nothing of it takes registers from their key loop.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def is_poisoned(sums):
    """Whether a float32 block [M, N] holds a NaN or an infinity."""
    return tl.sum(tl.sum(sums * 0.0, 1), 0) != 0.0


@triton.jit
def load_rows(
    rows,  # pointers [M]
    known,  # bool [M]
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
):
    """[M, D], with zeros in unknown rows and past HEAD_DIM."""
    dimension = tl.arange(0, D)
    mask = known[:, None] & (dimension < HEAD_DIM)[None, :]
    return tl.load(rows[:, None] + dimension[None, :], mask=mask, other=0.0)


@triton.jit
def row_products(rows, known, row, HEAD_DIM: tl.constexpr):
    """float32 [M]: the products of M rows in memory with one row [D]."""
    D: tl.constexpr = row.shape[0]
    dimension = tl.arange(0, D)
    mask = known[:, None] & (dimension < HEAD_DIM)[None, :]
    # Volatile: kept in registers from one product to the next, they would leave too few for sums.
    block = tl.load(rows[:, None] + dimension[None, :], mask=mask, other=0.0, volatile=True)
    return tl.sum(block.to(tl.float32) * row.to(tl.float32)[None, :], 1)


@triton.jit
def attend_by_keys(
    queries,  # pointers [M]
    known,  # bool [M]
    k_ptr,  # key 0 of this head; keys are k_stride apart
    v_ptr,  # value 0 of this head; values are v_stride apart, their numbers v_step
    k_stride,
    v_stride,
    v_step,
    start,  # the keys of this tile: [start, stop)
    stop,
    row_start,  # int32 [M]: the keys of each row
    row_end,
    scale_log2,  # float32, of all rows or [M]
    lse,  # float32 [M], base 2
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
):
    """Mean of the visible values, weighted by 2 ** (scale_log2 q k - lse), float32 [M, D]."""
    dimension = tl.arange(0, D)
    real = dimension < HEAD_DIM
    total = tl.zeros([queries.shape[0], D], tl.float32)
    for key in range(start, stop):
        place = tl.cast(key, tl.int64)
        k = tl.load(k_ptr + place * k_stride + dimension, mask=real, other=0.0)
        v = tl.load(v_ptr + place * v_stride + dimension * v_step, mask=real, other=0.0)
        weights = tl.exp2(row_products(queries, known, k, HEAD_DIM) * scale_log2 - lse)
        visible = (key >= row_start) & (key < row_end)
        product = weights[:, None] * v.to(tl.float32)[None, :]
        total += tl.where(visible[:, None], product, 0.0)
    return total


@triton.jit
def query_gradient_by_keys(
    queries,  # pointers [M]
    out_gradients,  # pointers [M]
    known,  # bool [M]
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    start,
    stop,
    row_start,
    row_end,
    scale_log2,
    lse,  # float32 [M], base 2
    delta,  # float32 [M]
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
):
    """Gradient of q but for the scale, float32 [M, D]."""
    dimension = tl.arange(0, D)
    real = dimension < HEAD_DIM
    total = tl.zeros([queries.shape[0], D], tl.float32)
    for key in range(start, stop):
        place = tl.cast(key, tl.int64)
        k = tl.load(k_ptr + place * k_stride + dimension, mask=real, other=0.0)
        v = tl.load(v_ptr + place * v_stride + dimension, mask=real, other=0.0)
        weights = tl.exp2(row_products(queries, known, k, HEAD_DIM) * scale_log2 - lse)
        scores_gradient = weights * (row_products(out_gradients, known, v, HEAD_DIM) - delta)
        visible = (key >= row_start) & (key < row_end)
        product = scores_gradient[:, None] * k.to(tl.float32)[None, :]
        total += tl.where(visible[:, None], product, 0.0)
    return total


@triton.jit
def key_or_value_gradient_by_queries(
    keys,  # pointers [N]
    values,  # pointers [N]
    known,  # bool [N]
    q_ptr,  # [T, Hq, D]
    out_gradient_ptr,
    lse_ptr,  # float32 [Hq, T], base 2, rows statistic_stride apart
    delta_ptr,
    q_stride_token,
    q_stride_head,
    out_gradient_stride_token,
    out_gradient_stride_head,
    statistic_stride,
    first_head,
    start,  # the queries of this tile: [start, stop)
    stop,
    col_start,  # int32 [N]: the queries of each key
    col_end,
    scale_log2,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
    OF_KEYS: tl.constexpr,
):
    """Gradient of k but for the scale, or that of v, over HEADS heads, float32 [N, D]."""
    dimension = tl.arange(0, D)
    real = dimension < HEAD_DIM
    total = tl.zeros([keys.shape[0], D], tl.float32)
    for index in range(HEADS * (stop - start)):
        head = (first_head + index // (stop - start)).to(tl.int64)
        query = (start + index % (stop - start)).to(tl.int64)
        q_row = q_ptr + query * q_stride_token + head * q_stride_head
        q = tl.load(q_row + dimension, mask=real, other=0.0)
        out_gradient_row = out_gradient_ptr + query * out_gradient_stride_token
        out_gradient_row += head * out_gradient_stride_head
        out_gradient = tl.load(out_gradient_row + dimension, mask=real, other=0.0)
        statistic = head * statistic_stride + query
        lse = tl.load(lse_ptr + statistic)
        weights = tl.exp2(row_products(keys, known, q, HEAD_DIM) * scale_log2 - lse)
        if OF_KEYS:
            weights_gradient = row_products(values, known, out_gradient, HEAD_DIM)
            weights *= weights_gradient - tl.load(delta_ptr + statistic)
            product = weights[:, None] * q.to(tl.float32)[None, :]
        else:
            product = weights[:, None] * out_gradient.to(tl.float32)[None, :]
        visible = (query >= col_start) & (query < col_end)
        total += tl.where(visible[:, None], product, 0.0)
    return total
