"""Tiles that a Gluon kernel has flagged as not finite, computed once more as `isolated` says."""

import triton
import triton.language as tl

from metamorph_kernels.attention.backward import key_rows
from metamorph_kernels.attention.forward import query_tile, row_pointers
from metamorph_kernels.attention.isolated import (
    LOG2_E,
    attend_by_keys,
    key_or_value_gradient_by_queries,
    query_gradient_by_keys,
)

FLAGS = 256  # that a program looks at


@triton.jit
def any_flag(flags_ptr, begin, count, FLAGS: tl.constexpr):
    """Whether one of FLAGS tiles from `begin` on is flagged. Almost always none is."""
    tile = begin + tl.arange(0, FLAGS)
    return tl.max(tl.load(flags_ptr + tile, mask=tile < count, other=0), 0) != 0


@triton.jit
def store_rows(rows, values, known, HEAD_DIM: tl.constexpr):
    """Of pointers [M] and values [M, HEAD_DIM] those that are known."""
    places = rows[:, None] + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(places, values.to(rows.dtype.element_ty), mask=known[:, None])


@triton.jit(do_not_specialize=["tokens", "count"])
def repair_forward(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    out_ptr,  # [T, Hq, D]
    lse_ptr,  # float32 [Hq, T]
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    poisoned_ptr,  # int32, one a tile: whether it is to be computed again
    tokens,
    count,  # of tiles
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    out_stride_token,
    out_stride_head,
    key_heads,
    scale,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr,
    FLAGS: tl.constexpr = FLAGS,
):
    """The flagged tiles of `attention_forward_gluon` among FLAGS of them, in its numbering."""
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    begin = tl.program_id(0) * FLAGS
    if not any_flag(poisoned_ptr, begin, count, FLAGS):
        return
    for work in range(begin, tl.minimum(begin + FLAGS, count)):
        if tl.load(poisoned_ptr + work) != 0:
            head = (work % head_blocks) * PACK
            key_head = (head // GROUP).to(tl.int64)
            first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
            token, row_start, row_end, start, stop, _, _ = query_tile(
                row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
            )
            known = token < tokens
            row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
            lse = tl.load(lse_ptr + row_head * tokens + token, mask=known, other=0.0) * LOG2_E
            out = attend_by_keys(
                row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M),
                known,
                k_ptr + key_head * k_stride_head,
                v_ptr + key_head * v_stride_head,
                k_stride_token, v_stride_token, 1, start, stop, row_start, row_end,
                scale * LOG2_E, lse, HEAD_DIM, HEAD_DIM,
            )  # fmt: skip
            outs = row_pointers(
                out_ptr, out_stride_token, out_stride_head, head, first, PACK, BLOCK_M
            )
            store_rows(outs, out, known, HEAD_DIM)


@triton.jit(do_not_specialize=["tokens", "count", "statistic_stride"])
def repair_query_gradient(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    out_gradient_ptr,  # [T, Hq, D]
    q_gradient_ptr,
    lse_log2_ptr,  # float32 [Hq, T] in rows `statistic_stride` apart: lse in base 2
    delta_ptr,
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    poisoned_ptr,  # int32, one a tile: whether it is to be computed again
    tokens,
    count,  # of tiles
    statistic_stride,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    out_gradient_stride_token,
    out_gradient_stride_head,
    q_gradient_stride_token,
    q_gradient_stride_head,
    key_heads,
    scale,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr,
    FLAGS: tl.constexpr = FLAGS,
):
    """The flagged tiles of `attention_query_gradient_gluon` among FLAGS of them, as it counts."""
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    begin = tl.program_id(0) * FLAGS
    if not any_flag(poisoned_ptr, begin, count, FLAGS):
        return
    for work in range(begin, tl.minimum(begin + FLAGS, count)):
        if tl.load(poisoned_ptr + work) != 0:
            head = (work % head_blocks) * PACK
            key_head = (head // GROUP).to(tl.int64)
            first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
            token, row_start, row_end, start, stop, _, _ = query_tile(
                row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
            )
            known = token < tokens
            row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
            statistic = row_head * statistic_stride + token
            gradient = query_gradient_by_keys(
                row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M),
                row_pointers(
                    out_gradient_ptr, out_gradient_stride_token, out_gradient_stride_head, head,
                    first, PACK, BLOCK_M,
                ),
                known,
                k_ptr + key_head * k_stride_head,
                v_ptr + key_head * v_stride_head,
                k_stride_token, v_stride_token, start, stop, row_start, row_end, scale * LOG2_E,
                tl.load(lse_log2_ptr + statistic, mask=known, other=0.0),
                tl.load(delta_ptr + statistic, mask=known, other=0.0),
                HEAD_DIM, HEAD_DIM,
            )  # fmt: skip
            rows = row_pointers(
                q_gradient_ptr, q_gradient_stride_token, q_gradient_stride_head, head, first, PACK,
                BLOCK_M,
            )  # fmt: skip
            store_rows(rows, gradient * scale, known, HEAD_DIM)


@triton.jit(do_not_specialize=["tokens", "count", "statistic_stride"])
def repair_key_value_gradient(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    out_gradient_ptr,  # [T, Hq, D]
    k_gradient_ptr,  # [T, Hkv, D], dense, as v_gradient
    v_gradient_ptr,
    lse_log2_ptr,  # float32 [Hq, T] in rows `statistic_stride` apart: lse in base 2
    delta_ptr,
    col_start_ptr,  # int32 [T]
    col_end_ptr,
    poisoned_ptr,  # int32, one a tile: whether it is to be computed again
    tokens,
    count,  # of tiles
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
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    FLAGS: tl.constexpr = FLAGS,
):
    """The flagged tiles of `attention_key_value_gradient_gluon` among FLAGS of them, likewise."""
    begin = tl.program_id(0) * FLAGS
    if not any_flag(poisoned_ptr, begin, count, FLAGS):
        return
    for work in range(begin, tl.minimum(begin + FLAGS, count)):
        if tl.load(poisoned_ptr + work) != 0:
            key_head = work % key_heads
            first = (work // key_heads) * BLOCK_N
            last = tl.minimum(first + BLOCK_N, tokens) - 1
            key = first + tl.arange(0, BLOCK_N)
            known = key < tokens
            start = first if CAUSAL else tl.load(col_start_ptr + first)
            stop = tl.load(col_end_ptr + last)
            col_start, col_end = key_rows(col_start_ptr, col_end_ptr, key, tokens, CAUSAL)
            for OF_KEYS in tl.static_range(2):
                gradient = key_or_value_gradient_by_queries(
                    row_pointers(k_ptr, k_stride_token, k_stride_head, key_head, first, 1, BLOCK_N),
                    row_pointers(v_ptr, v_stride_token, v_stride_head, key_head, first, 1, BLOCK_N),
                    known, q_ptr, out_gradient_ptr, lse_log2_ptr, delta_ptr, q_stride_token,
                    q_stride_head, out_gradient_stride_token, out_gradient_stride_head,
                    statistic_stride, key_head * GROUP, start, stop, col_start, col_end,
                    scale * LOG2_E, GROUP, HEAD_DIM, HEAD_DIM, OF_KEYS,
                )  # fmt: skip
                gradient_ptr = k_gradient_ptr if OF_KEYS else v_gradient_ptr
                rows = row_pointers(
                    gradient_ptr, key_heads * HEAD_DIM, HEAD_DIM, key_head, first, 1, BLOCK_N
                )
                store_rows(rows, gradient * scale if OF_KEYS else gradient, known, HEAD_DIM)
