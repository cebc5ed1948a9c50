"""An interval attention that ptxas 12.8 to 13.0 miscompiles, for the check that must find it.

Its queries are loaded before the loop over keys and are the register operand of q k^T, because TMA
brings them packed as [heads, tokens, head dim] and the reshape goes through registers. The weights
of P V are a register operand made in the loop. ptxas gives both the same registers: from the second
tile of keys on, q k^T multiplies weights of the tile before. Do not repair it. The shipped kernel
(`attention/forward.py`) keeps its queries in shared memory.
"""

import triton
import triton.language as tl

from metamorph_kernels.compilation import Compilation, descriptor_type

LOG2_E = tl.constexpr(1.4426950408889634)


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


@triton.jit(do_not_specialize=["tokens"])
def attention_forward(
    q_desc,  # [Hq, T, D] in blocks [PACK, BLOCK_M / PACK, BLOCK_D]
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,
    out_desc,  # as q
    lse_ptr,  # float32 [Hq, T]
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero: how many tiles have been handed out
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
    """softmax(scale q k^T) v, a tile of queries at a time, with a running maximum in base 2.

    PACK heads of a group stand in one tile, so that it spans few tokens: less of it is hidden at
    the diagonal and at the ends of documents, and keys and values are read once for all of them.
    Programs stay on their SM and take the next tile when they are done with one: tiles are
    of very different length. Which program computes a tile does not change a bit of it.
    """
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    scale_log2 = scale * LOG2_E
    work = tl.program_id(0)
    while work < tiles * head_blocks:
        next_work = tl.num_programs(0) + tl.atomic_add(work_ptr, 1)
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        # Late tokens see most keys: the longest tiles start first and the short ones fill the gaps.
        first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, full_start, full_stop = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )

        q = q_desc.load([head, first, 0]).reshape([BLOCK_M, BLOCK_D])
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

        out = (accumulator / total[:, None]).to(out_desc.dtype)
        out_desc.store([head, first, 0], out.reshape([PACK, BLOCK_M // PACK, BLOCK_D]))
        row_head = (head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)).to(tl.int64)
        lse = (maximum + tl.log2(total)) / LOG2_E
        tl.store(lse_ptr + row_head * tokens + token, lse, mask=token < tokens)
        work = next_work


def compilation() -> Compilation:
    """It in bfloat16 at head dim 128 with four heads in a tile, where it goes wrong."""
    head_dim, pack, block = 128, 4, 128
    queries = descriptor_type("bf16", pack, block // pack, head_dim)
    keys = descriptor_type("bf16", 1, block, head_dim)
    return Compilation(
        kernel=attention_forward,
        configuration="bf16 D=128 causal group 4 128x128",
        arguments={
            "q_desc": queries,
            "k_desc": keys,
            "v_desc": keys,
            "out_desc": queries,
            "lse_ptr": "*fp32",
            "row_start_ptr": "*i32",
            "row_end_ptr": "*i32",
            "work_ptr": "*i32",
            "tokens": "i32",
            "key_heads": "i32",
            "scale": "fp32",
            "GROUP": pack,
            "PACK": pack,
            "BLOCK_M": block,
            "BLOCK_N": block,
            "BLOCK_D": head_dim,
            "CAUSAL": True,
        },
        num_warps=8,
        num_stages=3,
    )
