"""Interval attention, forward, warp-specialised for Hopper in Gluon.

One warp brings queries, keys and values by TMA; two warp groups of 64 rows each compute. The
softmax of one tile of keys runs under the products of the other warp group and of its own: scores
of the next tile are asked for before the values of this one are added up (FlashAttention-3,
arXiv 2407.08608). It is a persistent kernel, one block an SM; the producer takes tiles from a
counter and runs ahead into the next one, whose bounds and queries are there when the last values of
this one are being added up.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from metamorph_kernels.attention.pipeline_gluon import LOG2_E, new_barriers, next_slot, pin, send
from metamorph_kernels.attention.query_tiles_gluon import (
    NO_MORE,
    QUEUE,
    first_token,
    get_tile,
    new_tile_numbers,
    put_no_more,
    put_tile,
)


@gluon.jit
def forward_producer(
    q_desc, k_desc, v_desc, q_ring, k_ring, v_ring, tile_numbers, row_start_ptr, row_end_ptr,
    work_ptr, tokens, key_heads, GROUP: gl.constexpr, PACK: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Takes tiles until there are no more, and sends what the consumers need, in their order."""
    SPAN: gl.constexpr = 128 // PACK  # tokens of a tile
    q_slots, q_full, q_empty = q_ring
    head_blocks = key_heads * (GROUP // PACK)
    count = gl.cdiv(tokens, SPAN) * head_blocks
    queue = 0
    queue_parity = 1  # the phase before the first is over
    k_slot = 0
    k_parity = 1
    v_slot = 0
    v_parity = 1
    work = gl.program_id(0)
    while work < count:
        head = (work % head_blocks) * PACK
        first = first_token(work, tokens, key_heads, GROUP, PACK)
        mbarrier.wait(q_empty.index(queue), queue_parity)
        start, stop = put_tile(
            tile_numbers, queue, work, first, row_start_ptr, row_end_ptr, tokens, PACK, CAUSAL
        )
        mbarrier.expect(q_full.index(queue), 2 * q_desc.block_type.nbytes)
        for half in gl.static_range(2):
            tma.async_copy_global_to_shared(
                q_desc, [head, first + half * (SPAN // 2), 0], q_full.index(queue),
                q_slots.index(queue * 2 + half),
            )  # fmt: skip
        queue, queue_parity = next_slot(queue, queue_parity, QUEUE)

        # Scores of the next tile of keys are asked for before the values of this one are needed.
        key_head = head // GROUP
        k_slot, k_parity = send(k_desc, key_head, start, k_ring, k_slot, k_parity, STAGES)
        for key in range(start + BLOCK_N, stop, BLOCK_N):
            k_slot, k_parity = send(k_desc, key_head, key, k_ring, k_slot, k_parity, STAGES)
            before = key - BLOCK_N
            v_slot, v_parity = send(v_desc, key_head, before, v_ring, v_slot, v_parity, STAGES)
        last = start + (stop - start - 1) // BLOCK_N * BLOCK_N
        v_slot, v_parity = send(v_desc, key_head, last, v_ring, v_slot, v_parity, STAGES)
        work = gl.num_programs(0) + gl.atomic_add(work_ptr, 1, sem="relaxed")
    mbarrier.wait(q_empty.index(queue), queue_parity)
    put_no_more(tile_numbers, queue)
    mbarrier.arrive(q_full.index(queue), count=1)


@gluon.jit
def softmax_step(
    scores, key, full_start, full_stop, row_start, row_end, maximum, scale_log2,
    BLOCK_N: gl.constexpr, SCORES: gl.constexpr,
):  # fmt: skip
    """Weights of scores [64, BLOCK_N], what to multiply older sums by, and the new maxima [64]."""
    if (key < full_start) | (key + BLOCK_N > full_stop):
        column = key + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SCORES))
        visible = (column[None, :] >= row_start[:, None]) & (column[None, :] < row_end[:, None])
        scores = gl.where(visible, scores, float("-inf"))
    new_maximum = gl.maximum(maximum, gl.max(scores, 1) * scale_log2)
    # A row that has met only hidden keys so far: -inf - -inf would be NaN.
    reference = gl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = gl.exp2(scores * scale_log2 - reference[:, None])
    return weights, gl.exp2(maximum - reference), new_maximum


@gluon.jit
def forward_consumer(
    k_desc, out_desc, q_ring, k_ring, v_ring, tile_numbers, turn, lse_ptr, row_start_ptr,
    row_end_ptr, poisoned_ptr, tokens, key_heads, scale, HALF_NUMBER: gl.constexpr,
    GROUP: gl.constexpr, PACK: gl.constexpr, BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr, TAKE_TURNS: gl.constexpr,
):  # fmt: skip
    """One half of each tile: 64 rows, PACK heads times 64 / PACK tokens."""
    HALF: gl.constexpr = 64 // PACK
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16]
    )
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    dtype: gl.constexpr = k_desc.dtype
    q_slots, q_full, q_empty = q_ring
    k_slots, k_full, k_empty = k_ring
    v_slots, v_full, v_empty = v_ring
    scale_log2 = scale * LOG2_E
    head_blocks = key_heads * (GROUP // PACK)
    row = gl.arange(0, 64, layout=ROWS)
    no_scores = gl.zeros([64, BLOCK_N], gl.float32, SCORES)
    slot = 0
    parity = 0
    turn_parity = 0
    queue = 0
    queue_parity = 0
    mbarrier.wait(q_full.index(queue), queue_parity)
    work, start, stop, full_start, full_stop, row_start, row_end = get_tile(
        tile_numbers, queue, row_start_ptr, row_end_ptr, tokens, key_heads, HALF_NUMBER, GROUP,
        PACK, CAUSAL, ROWS,
    )  # fmt: skip
    while work != NO_MORE:
        q = q_slots.index(queue * 2 + HALF_NUMBER).reshape([64, HEAD_DIM])
        out = gl.zeros([64, HEAD_DIM], gl.float32, SUMS)
        maximum = gl.full([64], float("-inf"), gl.float32, ROWS)

        # The weights of the first tile of keys, which have nothing to run under but the other half.
        mbarrier.wait(k_full.index(slot), parity)
        if TAKE_TURNS:
            mbarrier.wait(turn.index(HALF_NUMBER), turn_parity)
            turn_parity ^= 1
        k = k_slots.index(slot).reshape([BLOCK_N, HEAD_DIM])
        product = warpgroup_mma(q, k.permute([1, 0]), no_scores, use_acc=False, is_async=True)
        if TAKE_TURNS:
            mbarrier.arrive(turn.index(1 - HALF_NUMBER), count=1)
        scores = warpgroup_mma_wait(0, deps=[product])
        mbarrier.arrive(k_empty.index(slot), count=1)
        weights, first_correction, maximum = softmax_step(
            scores, start, full_start, full_stop, row_start, row_end, maximum, scale_log2,
            BLOCK_N, SCORES,
        )  # fmt: skip
        total = gl.sum(weights, 1)
        operand = gl.convert_layout(weights.to(dtype), WEIGHTS)

        for key in range(start + BLOCK_N, stop, BLOCK_N):
            value_slot = slot
            value_parity = parity
            slot, parity = next_slot(slot, parity, STAGES)
            mbarrier.wait(k_full.index(slot), parity)
            if TAKE_TURNS:
                mbarrier.wait(turn.index(HALF_NUMBER), turn_parity)
                turn_parity ^= 1
            k = k_slots.index(slot).reshape([BLOCK_N, HEAD_DIM])
            product = warpgroup_mma(q, k.permute([1, 0]), no_scores, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(value_slot), value_parity)
            v = v_slots.index(value_slot).reshape([BLOCK_N, HEAD_DIM])
            sums = warpgroup_mma(operand, v, out, is_async=True)
            if TAKE_TURNS:
                mbarrier.arrive(turn.index(1 - HALF_NUMBER), count=1)
            scores = warpgroup_mma_wait(1, deps=[product])
            mbarrier.arrive(k_empty.index(slot), count=1)
            weights, correction, maximum = softmax_step(
                scores, key, full_start, full_stop, row_start, row_end, maximum, scale_log2,
                BLOCK_N, SCORES,
            )  # fmt: skip
            total = pin(total * correction + gl.sum(weights, 1))
            next_operand = gl.convert_layout(weights.to(dtype), WEIGHTS)
            out, operand = warpgroup_mma_wait(0, deps=[sums, operand])
            mbarrier.arrive(v_empty.index(value_slot), count=1)
            out = out * gl.convert_layout(correction, gl.SliceLayout(1, SUMS))[:, None]
            operand = next_operand

        mbarrier.wait(v_full.index(slot), parity)
        v = v_slots.index(slot).reshape([BLOCK_N, HEAD_DIM])
        sums = warpgroup_mma(operand, v, out, is_async=True)
        # Under this product: what the next tile is, and the bounds of its rows.
        next_queue, next_queue_parity = next_slot(queue, queue_parity, QUEUE)
        mbarrier.wait(q_full.index(next_queue), next_queue_parity)
        next_work, next_start, next_stop, next_full_start, next_full_stop, next_rows, next_ends = (
            get_tile(
                tile_numbers, next_queue, row_start_ptr, row_end_ptr, tokens, key_heads,
                HALF_NUMBER, GROUP, PACK, CAUSAL, ROWS,
            )
        )  # fmt: skip
        out, operand = warpgroup_mma_wait(0, deps=[sums, operand])
        mbarrier.arrive(v_empty.index(slot), count=1)
        slot, parity = next_slot(slot, parity, STAGES)

        head = (work % head_blocks) * PACK
        mine = first_token(work, tokens, key_heads, GROUP, PACK) + HALF_NUMBER * HALF
        token = mine + row % HALF
        row_head = (head + row // HALF).to(gl.int64)
        lse = (maximum + gl.log2(total)) / LOG2_E
        gl.store(lse_ptr + row_head * tokens + token, lse, mask=token < tokens)
        out = out / gl.convert_layout(total, gl.SliceLayout(1, SUMS))[:, None]
        # 0 times NaN is NaN: what a row may not see has reached it if that is not finite.
        poisoned = gl.sum(out * 0.0, 1) != 0.0
        flags = poisoned_ptr + work + gl.zeros([64], gl.int32, gl.SliceLayout(1, SUMS))
        gl.store(flags, 1, mask=poisoned)
        # The queries of this half are no longer needed: the result takes their place.
        q.store(out.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(
            out_desc, [head, mine, 0], q_slots.index(queue * 2 + HALF_NUMBER)
        )
        tma.store_wait(0)
        mbarrier.arrive(q_empty.index(queue), count=1)
        queue, queue_parity = next_queue, next_queue_parity
        work, start, stop = next_work, next_start, next_stop
        full_start, full_stop = next_full_start, next_full_stop
        row_start, row_end = next_rows, next_ends


@gluon.jit(do_not_specialize=["tokens", "key_heads"])
def attention_forward_gluon(
    q_desc,  # [Hq, T, D] in blocks [PACK, 64 / PACK, D]
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, D]
    v_desc,
    out_desc,  # as q_desc
    lse_ptr,  # float32 [Hq, T]
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero: how many tiles have been handed out
    poisoned_ptr,  # int32, one a tile, zero: set where sums are not finite
    tokens,
    key_heads,
    scale,
    GROUP: gl.constexpr,
    PACK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
    TAKE_TURNS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
):
    """softmax(scale q k^T) v over the keys [row_start, row_end) of each query, and lse.

    A tile is 128 rows: PACK heads of a group times 128 / PACK tokens, half of them each consumer's.
    With TAKE_TURNS the consumers issue their products in turns, so that the softmax of one runs
    under the products of the other.
    """
    q_slots = gl.allocate_shared_memory(
        q_desc.dtype, [2 * QUEUE, PACK, 64 // PACK, HEAD_DIM], q_desc.layout
    )
    k_slots = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, BLOCK_N, HEAD_DIM], k_desc.layout)
    v_slots = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, BLOCK_N, HEAD_DIM], v_desc.layout)
    q_ring = (q_slots, new_barriers(QUEUE, 1), new_barriers(QUEUE, 2))
    k_ring = (k_slots, new_barriers(STAGES, 1), new_barriers(STAGES, 2))
    v_ring = (v_slots, new_barriers(STAGES, 1), new_barriers(STAGES, 2))
    tile_numbers = new_tile_numbers()
    turn = new_barriers(2, 1)
    mbarrier.arrive(turn.index(0), count=1)
    gl.warp_specialize(
        [
            (
                forward_consumer,
                (
                    k_desc, out_desc, q_ring, k_ring, v_ring, tile_numbers, turn, lse_ptr,
                    row_start_ptr, row_end_ptr, poisoned_ptr, tokens, key_heads, scale,
                    gl.constexpr(0), GROUP, PACK, BLOCK_N, HEAD_DIM, STAGES, CAUSAL, TAKE_TURNS,
                ),
            ),
            (
                forward_consumer,
                (
                    k_desc, out_desc, q_ring, k_ring, v_ring, tile_numbers, turn, lse_ptr,
                    row_start_ptr, row_end_ptr, poisoned_ptr, tokens, key_heads, scale,
                    gl.constexpr(1), GROUP, PACK, BLOCK_N, HEAD_DIM, STAGES, CAUSAL, TAKE_TURNS,
                ),
            ),
            (
                forward_producer,
                (
                    q_desc, k_desc, v_desc, q_ring, k_ring, v_ring, tile_numbers, row_start_ptr,
                    row_end_ptr, work_ptr, tokens, key_heads, GROUP, PACK, BLOCK_N, STAGES, CAUSAL,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, 3 * 168 - 2 * CONSUMER_REGISTERS],  # of the 168 of each at launch
    )  # fmt: skip
