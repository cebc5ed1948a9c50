"""Triton kernels of interval attention, backward: one pass for queries, one for keys and values.

FlashAttention's recomputing backward in two passes, the one for queries a persistent kernel. They
compute the scores twice, but every gradient is summed by one program in a fixed order: no atomics,
the same bits every time.
"""

import triton
import triton.language as tl

from metamorph_kernels.attention.forward import query_tile, row_pointers
from metamorph_kernels.attention.isolated import (
    LOG2_E,
    is_poisoned,
    key_or_value_gradient_by_queries,
    load_rows,
    query_gradient_by_keys,
)


@triton.jit(do_not_specialize=["tokens", "statistic_stride"])
def attention_query_gradient(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    out_ptr,  # [T, Hq, D], dense
    out_gradient_ptr,  # [T, Hq, D]
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,
    q_gradient_desc,  # [Hq, T, D] in blocks [PACK, BLOCK_M / PACK, BLOCK_D]
    lse_ptr,  # float32 [Hq, T]
    lse_gradient_ptr,
    lse_log2_ptr,  # float32 [Hq, T] in rows `statistic_stride` apart, written here: lse in base 2
    delta_ptr,  # as lse_log2_ptr, written here
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero
    poisoned_ptr,  # int32, one a tile: of a tile to be computed again, the one before it
    tokens,
    statistic_stride,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    out_gradient_stride_token,
    out_gradient_stride_head,
    key_heads,
    scale,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """dq in tiles and order of the forward; for the other pass delta = out . dout - dlse."""
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    scale_log2 = scale * LOG2_E
    poisoned = -1  # the last of this program's tiles to be computed again, the head of a list
    work = tl.program_id(0)
    while work < tiles * head_blocks:
        next_work = tl.num_programs(0) + tl.atomic_add(work_ptr, 1, sem="relaxed")
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, full_start, full_stop = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )

        row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
        given, statistic = row_head * tokens + token, row_head * statistic_stride + token
        known = token < tokens
        outs = row_pointers(
            out_ptr, key_heads * GROUP * HEAD_DIM, HEAD_DIM, head, first, PACK, BLOCK_M
        )
        out = load_rows(outs, known, HEAD_DIM, BLOCK_D)
        out_gradients = row_pointers(
            out_gradient_ptr, out_gradient_stride_token, out_gradient_stride_head, head, first,
            PACK, BLOCK_M,
        )  # fmt: skip
        out_gradient = load_rows(out_gradients, known, HEAD_DIM, BLOCK_D)
        delta = tl.sum(out.to(tl.float32) * out_gradient.to(tl.float32), 1)
        delta -= tl.load(lse_gradient_ptr + given, mask=known, other=0.0)
        tl.store(delta_ptr + statistic, delta, mask=known)
        lse = tl.load(lse_ptr + given, mask=known, other=0.0) * LOG2_E
        tl.store(lse_log2_ptr + statistic, lse, mask=known)

        queries = row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M)
        q = load_rows(queries, known, HEAD_DIM, BLOCK_D)
        q_gradient = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for key in tl.range(start, stop, BLOCK_N):
            k = k_desc.load([key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
            scores = tl.dot(q, k.T, input_precision="ieee")
            weights = tl.exp2(scores * scale_log2 - lse[:, None])
            if (key < full_start) | (key + BLOCK_N > full_stop):
                column = key + tl.arange(0, BLOCK_N)[None, :]
                visible = (column >= row_start[:, None]) & (column < row_end[:, None])
                weights = tl.where(visible, weights, 0.0)
            v = v_desc.load([key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
            weights_gradient = tl.dot(out_gradient, v.T, input_precision="ieee")
            scores_gradient = weights * (weights_gradient - delta[:, None])
            q_gradient = tl.dot(scores_gradient.to(k.dtype), k, q_gradient, input_precision="ieee")
        if is_poisoned(q_gradient):
            tl.store(poisoned_ptr + work, poisoned)
            poisoned = work
        else:
            block = (q_gradient * scale).to(q_gradient_desc.dtype)
            q_gradient_desc.store([head, first, 0], block.reshape([PACK, BLOCK_M // PACK, BLOCK_D]))
        work = next_work

    while poisoned >= 0:
        tl.debug_barrier()  # other threads wrote the list and the statistics
        head = (poisoned % head_blocks) * PACK
        key_head = (head // GROUP).to(tl.int64)
        first = (tiles - 1 - poisoned // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, _, _ = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )
        row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
        statistic = row_head * statistic_stride + token
        known = token < tokens
        q_gradient = query_gradient_by_keys(
            row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M),
            row_pointers(
                out_gradient_ptr, out_gradient_stride_token, out_gradient_stride_head, head,
                first, PACK, BLOCK_M,
            ),
            known,
            k_ptr + key_head * k_stride_head,
            v_ptr + key_head * v_stride_head,
            k_stride_token, v_stride_token, start, stop, row_start, row_end, scale_log2,
            tl.load(lse_log2_ptr + statistic, mask=known, other=0.0),
            tl.load(delta_ptr + statistic, mask=known, other=0.0),
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        block = (q_gradient * scale).to(q_gradient_desc.dtype)
        q_gradient_desc.store([head, first, 0], block.reshape([PACK, BLOCK_M // PACK, BLOCK_D]))
        poisoned = tl.load(poisoned_ptr + poisoned)


@triton.jit
def key_rows(col_start_ptr, col_end_ptr, key, tokens, CAUSAL: tl.constexpr):
    """The queries [col_start, col_end) of each key; keys past the last repeat it."""
    known_key = tl.minimum(key, tokens - 1)
    if CAUSAL:
        col_start = key
    else:
        col_start = tl.load(col_start_ptr + known_key)
    return col_start, tl.load(col_end_ptr + known_key)


@triton.jit(do_not_specialize=["tokens", "statistic_stride"])
def attention_key_value_gradient(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    out_gradient_ptr,  # [T, Hq, D]
    q_desc,  # [Hq, T, D] in blocks [1, BLOCK_M, BLOCK_D]
    out_gradient_desc,
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,
    k_gradient_desc,
    v_gradient_desc,
    lse_log2_desc,  # float32 [Hq, T] in blocks [1, BLOCK_M]
    delta_desc,
    lse_log2_ptr,  # the same, rows `statistic_stride` apart
    delta_ptr,
    col_start_ptr,  # int32 [T]
    col_end_ptr,
    tokens,
    statistic_stride,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    out_gradient_stride_token,
    out_gradient_stride_head,
    key_heads,
    scale,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """dk and dv of one tile of keys, over all queries of its group of heads.

    Scores stand transposed, [BLOCK_N, BLOCK_M], so that weights and their gradient enter the next
    product from registers. One program a tile: a loop over tiles as in the other kernels would not
    fit into the registers beside the two accumulators.
    """
    key_head = tl.program_id(0) % key_heads
    # Early keys are seen by most queries, so in this order the longest tiles start first.
    first = (tl.program_id(0) // key_heads) * BLOCK_N
    last = tl.minimum(first + BLOCK_N, tokens) - 1
    key = first + tl.arange(0, BLOCK_N)
    stop = tl.load(col_end_ptr + last)
    full_stop = tl.load(col_end_ptr + first)
    if CAUSAL:
        start = first
        full_start = last
    else:
        # TMA wants steps of 16 bytes along the rows of lse and delta.
        start = tl.load(col_start_ptr + first) // 4 * 4
        full_start = tl.load(col_start_ptr + last)

    k = k_desc.load([key_head, first, 0]).reshape([BLOCK_N, BLOCK_D])
    v = v_desc.load([key_head, first, 0]).reshape([BLOCK_N, BLOCK_D])
    k_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    v_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    scale_log2 = scale * LOG2_E
    head = key_head * GROUP
    query = start
    # One loop over heads too: the pipeline never drains.
    for _ in tl.range(0, GROUP * tl.cdiv(stop - start, BLOCK_M)):
        token = query + tl.arange(0, BLOCK_M)
        q = q_desc.load([head, query, 0]).reshape([BLOCK_M, BLOCK_D])
        lse = lse_log2_desc.load([head, query]).reshape([BLOCK_M])
        scores = tl.dot(k, q.T, input_precision="ieee")
        if (query < full_start) | (query + BLOCK_M > full_stop):
            # Loaded where they are needed: the accumulators leave no registers to keep them.
            col_start, col_end = key_rows(col_start_ptr, col_end_ptr, key, tokens, CAUSAL)
            visible = (token[None, :] >= col_start[:, None]) & (token[None, :] < col_end[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        weights = tl.exp2(scores * scale_log2 - lse[None, :])
        out_gradient = out_gradient_desc.load([head, query, 0]).reshape([BLOCK_M, BLOCK_D])
        v_gradient = tl.dot(weights.to(q.dtype), out_gradient, v_gradient, input_precision="ieee")
        delta = delta_desc.load([head, query]).reshape([BLOCK_M])
        weights_gradient = tl.dot(v, out_gradient.T, input_precision="ieee")
        scores_gradient = weights * (weights_gradient - delta[None, :])
        k_gradient = tl.dot(scores_gradient.to(q.dtype), q, k_gradient, input_precision="ieee")
        # Selected, not branched to: behind a branch the next tile would not be loaded ahead.
        query += BLOCK_M
        head = tl.where(query < stop, head, head + 1)
        query = tl.where(query < stop, query, start)

    if is_poisoned(k_gradient) | is_poisoned(v_gradient):
        col_start, col_end = key_rows(col_start_ptr, col_end_ptr, key, tokens, CAUSAL)
        for OF_KEYS in tl.static_range(2):
            gradient = key_or_value_gradient_by_queries(
                row_pointers(k_ptr, k_stride_token, k_stride_head, key_head, first, 1, BLOCK_N),
                row_pointers(v_ptr, v_stride_token, v_stride_head, key_head, first, 1, BLOCK_N),
                key < tokens, q_ptr, out_gradient_ptr, lse_log2_ptr, delta_ptr,
                q_stride_token, q_stride_head, out_gradient_stride_token, out_gradient_stride_head,
                statistic_stride, key_head * GROUP, start, stop, col_start, col_end, scale_log2,
                GROUP, HEAD_DIM, BLOCK_D, OF_KEYS,
            )  # fmt: skip
            if OF_KEYS:
                block = (gradient * scale).to(k_gradient_desc.dtype)
                k_gradient_desc.store([key_head, first, 0], block.reshape([1, BLOCK_N, BLOCK_D]))
            else:
                block = gradient.to(v_gradient_desc.dtype)
                v_gradient_desc.store([key_head, first, 0], block.reshape([1, BLOCK_N, BLOCK_D]))
    else:
        block = (k_gradient * scale).to(k_gradient_desc.dtype)
        k_gradient_desc.store([key_head, first, 0], block.reshape([1, BLOCK_N, BLOCK_D]))
        block = v_gradient.to(v_gradient_desc.dtype)
        v_gradient_desc.store([key_head, first, 0], block.reshape([1, BLOCK_N, BLOCK_D]))
