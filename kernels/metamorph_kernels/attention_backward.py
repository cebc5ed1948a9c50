"""Triton kernels of interval attention, backward: one pass for queries, one for keys and values.

Two passes compute the scores twice, but every gradient is summed by one program in a fixed order:
no atomics, the same bits every time.
"""

import triton
import triton.language as tl

from metamorph_kernels.attention_forward import LOG2_E, query_tile


@triton.jit(do_not_specialize=["tokens"])
def attention_query_gradient(
    q_desc,  # [Hq, T, D] in blocks [PACK, BLOCK_M / PACK, BLOCK_D]
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,
    out_desc,  # as q
    out_gradient_desc,
    q_gradient_desc,
    lse_ptr,  # float32 [Hq, T]
    lse_gradient_ptr,
    delta_ptr,  # float32 [Hq, T], written here
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero
    tokens,
    key_heads,
    scale,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """dq in tiles and order of the forward; and delta = out . dout - dlse for the other pass."""
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    scale_log2 = scale * LOG2_E
    work = tl.program_id(0)
    while work < tiles * head_blocks:
        next_work = tl.num_programs(0) + tl.atomic_add(work_ptr, 1)
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, full_start, full_stop = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )

        row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
        statistic = row_head * tokens + token
        known = token < tokens
        out = out_desc.load([head, first, 0]).reshape([BLOCK_M, BLOCK_D])
        out_gradient = out_gradient_desc.load([head, first, 0]).reshape([BLOCK_M, BLOCK_D])
        delta = tl.sum(out.to(tl.float32) * out_gradient.to(tl.float32), 1)
        delta -= tl.load(lse_gradient_ptr + statistic, mask=known, other=0.0)
        tl.store(delta_ptr + statistic, delta, mask=known)
        lse = tl.load(lse_ptr + statistic, mask=known, other=0.0) * LOG2_E

        q = q_desc.load([head, first, 0]).reshape([BLOCK_M, BLOCK_D])
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
        q_gradient = (q_gradient * scale).to(q_gradient_desc.dtype)
        q_gradient_desc.store(
            [head, first, 0], q_gradient.reshape([PACK, BLOCK_M // PACK, BLOCK_D])
        )
        work = next_work


@triton.jit(do_not_specialize=["tokens"])
def attention_key_value_gradient(
    q_desc,  # [Hq, T, D] in blocks [1, BLOCK_M, BLOCK_D]
    out_gradient_desc,
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,
    k_gradient_desc,
    v_gradient_desc,
    lse_ptr,  # float32 [Hq, T]
    delta_ptr,
    col_start_ptr,  # int32 [T]
    col_end_ptr,
    tokens,
    key_heads,
    scale,
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
    col_end = tl.load(col_end_ptr + tl.minimum(key, tokens - 1))
    stop = tl.load(col_end_ptr + last)
    full_stop = tl.load(col_end_ptr + first)
    if CAUSAL:
        col_start = key
        start = first
        full_start = last
    else:
        col_start = tl.load(col_start_ptr + tl.minimum(key, tokens - 1))
        start = tl.load(col_start_ptr + first)
        full_start = tl.load(col_start_ptr + last)

    k = k_desc.load([key_head, first, 0]).reshape([BLOCK_N, BLOCK_D])
    v = v_desc.load([key_head, first, 0]).reshape([BLOCK_N, BLOCK_D])
    k_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    v_gradient = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    scale_log2 = scale * LOG2_E
    tiles = tl.cdiv(stop - start, BLOCK_M)
    for index in tl.range(0, GROUP * tiles):  # one loop over heads too: the pipeline never drains
        head = key_head * GROUP + index // tiles
        query = start + (index % tiles) * BLOCK_M
        token = query + tl.arange(0, BLOCK_M)
        row_of_head = head.to(tl.int64) * tokens
        q = q_desc.load([head, query, 0]).reshape([BLOCK_M, BLOCK_D])
        lse = tl.load(lse_ptr + row_of_head + token, mask=token < tokens, other=0.0) * LOG2_E
        scores = tl.dot(k, q.T, input_precision="ieee")
        weights = tl.exp2(scores * scale_log2 - lse[None, :])
        if (query < full_start) | (query + BLOCK_M > full_stop):
            visible = (token[None, :] >= col_start[:, None]) & (token[None, :] < col_end[:, None])
            weights = tl.where(visible, weights, 0.0)
        out_gradient = out_gradient_desc.load([head, query, 0]).reshape([BLOCK_M, BLOCK_D])
        v_gradient = tl.dot(weights.to(q.dtype), out_gradient, v_gradient, input_precision="ieee")
        delta = tl.load(delta_ptr + row_of_head + token, mask=token < tokens, other=0.0)
        weights_gradient = tl.dot(v, out_gradient.T, input_precision="ieee")
        scores_gradient = weights * (weights_gradient - delta[None, :])
        k_gradient = tl.dot(scores_gradient.to(q.dtype), q, k_gradient, input_precision="ieee")

    k_gradient = (k_gradient * scale).to(k_gradient_desc.dtype)
    k_gradient_desc.store([key_head, first, 0], k_gradient.reshape([1, BLOCK_N, BLOCK_D]))
    v_gradient_desc.store(
        [key_head, first, 0],
        v_gradient.to(v_gradient_desc.dtype).reshape([1, BLOCK_N, BLOCK_D]),
    )
