"""Triton kernel of interval attention, forward.

FlashAttention with online softmax, as a persistent kernel: TMA brings keys and values, queries stay
in shared memory, a block is two warp groups.
"""

import triton
import triton.language as tl

from metamorph_kernels.attention.isolated import LOG2_E, attend_by_keys, is_poisoned, load_rows


@triton.jit
def query_tile(
    row_start_ptr, row_end_ptr, first, tokens, PACK: tl.constexpr, BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """What a tile of queries may see: [start, stop), and [full_start, full_stop) by every row.

    A tile is BLOCK_M / PACK tokens from `first` on times PACK heads that share their key head.
    Also returns token, row_start and row_end of each row [BLOCK_M]. Rows past the last token
    repeat it. The bounds never decrease, so the first and last token bound all of them.
    """
    last = tl.minimum(first + BLOCK_M // PACK, tokens) - 1
    token = first + tl.arange(0, BLOCK_M) % (BLOCK_M // PACK)
    known_token = tl.minimum(token, tokens - 1)
    row_start = tl.load(row_start_ptr + known_token)
    start = tl.load(row_start_ptr + first)
    full_start = tl.load(row_start_ptr + last)
    if CAUSAL:
        row_end = known_token + 1
        stop = last + 1
        full_stop = first + 1
    else:
        row_end = tl.load(row_end_ptr + known_token)
        stop = tl.load(row_end_ptr + last)
        full_stop = tl.load(row_end_ptr + first)
    return token, row_start, row_end, start, stop, full_start, full_stop


@triton.jit
def row_pointers(
    x_ptr, stride_token, stride_head, head, first, PACK: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Of the rows of a tile of x [T, Hq, D], [BLOCK_M].

    Kernels load queries through these, not by TMA: what TMA brings as [PACK, BLOCK_M / PACK, D]
    Triton reshapes in registers, and every product would read it there, a quarter of all registers
    for the whole key loop. ptxas 12.8 to 13.0 even overwrites them inside that loop. What a plain
    load brings goes to shared memory, where products read it.
    """
    token = first + tl.arange(0, BLOCK_M) % (BLOCK_M // PACK)
    row_head = head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)
    return x_ptr + token.to(tl.int64) * stride_token + row_head.to(tl.int64) * stride_head


@triton.jit(do_not_specialize=["tokens"])
def attention_forward(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,
    out_desc,  # [Hq, T, D] in blocks [PACK, BLOCK_M / PACK, BLOCK_D]
    lse_ptr,  # float32 [Hq, T]
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero: how many tiles have been handed out
    poisoned_ptr,  # int32, one a tile: of a tile to be computed again, the one before it
    tokens,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
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
    """softmax(scale q k^T) v, a tile of queries at a time, by online softmax in base 2.

    PACK heads of a group stand in one tile, so that it spans few tokens: less of it is hidden at
    the diagonal and at the ends of documents, and keys and values are read once for all of them.
    Programs are persistent, one an SM, and take the next tile when they are done with one: tiles
    are of very different length. Which program computes a tile does not change a bit of it.
    """
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    scale_log2 = scale * LOG2_E
    poisoned = -1  # the last of this program's tiles to be computed again, the head of a list
    work = tl.program_id(0)
    while work < tiles * head_blocks:
        next_work = tl.num_programs(0) + tl.atomic_add(work_ptr, 1, sem="relaxed")
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        # Late tokens see most keys: the longest tiles start first and the short ones fill the gaps.
        first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, full_start, full_stop = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )

        queries = row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M)
        q = load_rows(queries, token < tokens, HEAD_DIM, BLOCK_D)
        accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        # One loop with a branch for the mask, not a loop for each kind of tile: short documents
        # have few tiles, and the pipeline would drain between the loops.
        for key in tl.range(start, stop, BLOCK_N):
            k = k_desc.load([key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
            scores = tl.dot(q, k.T, input_precision="ieee")
            if (key < full_start) | (key + BLOCK_N > full_stop):
                column = key + tl.arange(0, BLOCK_N)[None, :]
                visible = (column >= row_start[:, None]) & (column < row_end[:, None])
                scores = tl.where(visible, scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale_log2)
            # A row that has met only hidden keys so far: -inf - -inf would be NaN.
            reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            weights = tl.exp2(scores * scale_log2 - reference[:, None])
            correction = tl.exp2(maximum - reference)
            total = total * correction + tl.sum(weights, 1)
            accumulator = accumulator * correction[:, None]
            v = v_desc.load([key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
            accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
            maximum = new_maximum

        row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
        lse = (maximum + tl.log2(total)) / LOG2_E
        tl.store(lse_ptr + row_head * tokens + token, lse, mask=token < tokens)
        out = accumulator / total[:, None]
        if is_poisoned(out):
            tl.store(poisoned_ptr + work, poisoned)
            poisoned = work
        else:
            block = out.to(out_desc.dtype).reshape([PACK, BLOCK_M // PACK, BLOCK_D])
            out_desc.store([head, first, 0], block)
        work = next_work

    while poisoned >= 0:
        tl.debug_barrier()  # the list and lse were written by other threads
        head = (poisoned % head_blocks) * PACK
        key_head = (head // GROUP).to(tl.int64)
        first = (tiles - 1 - poisoned // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, _, _ = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )
        row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
        lse = tl.load(lse_ptr + row_head * tokens + token, mask=token < tokens, other=0.0) * LOG2_E
        out = attend_by_keys(
            row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M),
            token < tokens,
            k_ptr + key_head * k_stride_head,
            v_ptr + key_head * v_stride_head,
            k_stride_token, v_stride_token, 1, start, stop, row_start, row_end, scale_log2, lse,
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        block = out.to(out_desc.dtype).reshape([PACK, BLOCK_M // PACK, BLOCK_D])
        out_desc.store([head, first, 0], block)
        poisoned = tl.load(poisoned_ptr + poisoned)
