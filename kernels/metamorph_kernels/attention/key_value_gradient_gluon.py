"""Interval attention, gradients of keys and values, warp-specialised for Hopper in Gluon.

One warp brings keys and values, and then every query that sees them with its gradients, lse and
delta, by TMA; two warp groups of 64 keys each compute, and share the queries. Scores stand
transposed, [keys, queries], so that weights and their gradients enter the next product from
registers. It is a persistent kernel, one block an SM: the producer takes tiles from a counter, and
brings the next ones while gradients are still on their way out.
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

from metamorph_kernels.attention.gradients_gluon import (
    new_columns,
    put_block,
    transposed,
    weights_of,
)
from metamorph_kernels.attention.key_tiles_gluon import query_bounds
from metamorph_kernels.attention.pipeline_gluon import (
    LOG2_E,
    get_number,
    new_barriers,
    next_slot,
    put_number,
)
from metamorph_kernels.attention.query_tiles_gluon import NO_MORE


@gluon.jit
def key_value_gradient_producer(
    sources, keys, queries, bounds, order_ptr, work_ptr, tokens, key_heads, group,
    BLOCK_M: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Takes tiles until there are no more, and sends what the consumers need, in their order."""
    q_desc, out_gradient_desc, k_desc, v_desc, lse_log2_desc, delta_desc = sources
    k_halves, v_halves, tile_numbers, keys_full, keys_empty = keys
    q_slots, out_gradient_slots, lse_slots, delta_slots, block_queries, full, empty = queries
    keys_parity = 1  # the phase before the first is over
    slot = 0
    parity = 1
    place = gl.program_id(0)  # in the order in which tiles are handed out
    while place < gl.cdiv(tokens, 128) * key_heads:
        key_head = place % key_heads
        tile = gl.load(order_ptr + place // key_heads)
        first = tile * 128
        start, stop, full_start, full_stop = query_bounds(bounds, first, tokens, CAUSAL)
        start = start // 4 * 4  # TMA wants steps of 16 bytes along the rows of lse and delta
        # Of keys that nobody sees one block, all of it hidden, so that they get zeros.
        blocks = gl.maximum(gl.cdiv(stop - start, BLOCK_M), 1)
        mbarrier.wait(keys_empty.index(0), keys_parity)
        keys_parity ^= 1
        put_number(tile_numbers, 0, tile * key_heads + key_head)
        put_number(tile_numbers, 1, group * blocks)
        put_number(tile_numbers, 2, first)
        put_number(tile_numbers, 3, key_head)
        mbarrier.expect(keys_full.index(0), 4 * k_desc.block_type.nbytes)
        for half in gl.static_range(2):
            tma.async_copy_global_to_shared(
                k_desc, [key_head, first + half * 64, 0], keys_full.index(0), k_halves.index(half)
            )
            tma.async_copy_global_to_shared(
                v_desc, [key_head, first + half * 64, 0], keys_full.index(0), v_halves.index(half)
            )
        for head in range(key_head * group, key_head * group + group):
            for query in range(start, start + blocks * BLOCK_M, BLOCK_M):
                ready = full.index(slot)
                mbarrier.wait(empty.index(slot), parity)
                put_block(block_queries, slot, query, BLOCK_M, full_start, full_stop)
                mbarrier.expect(
                    ready, 2 * q_desc.block_type.nbytes + 2 * delta_desc.block_type.nbytes
                )
                tma.async_copy_global_to_shared(
                    q_desc, [head, query, 0], ready, q_slots.index(slot)
                )
                tma.async_copy_global_to_shared(
                    out_gradient_desc, [head, query, 0], ready, out_gradient_slots.index(slot)
                )
                tma.async_copy_global_to_shared(
                    lse_log2_desc, [head, query], ready, lse_slots.index(slot)
                )
                tma.async_copy_global_to_shared(
                    delta_desc, [head, query], ready, delta_slots.index(slot)
                )
                slot, parity = next_slot(slot, parity, STAGES)
        place = gl.num_programs(0) + gl.atomic_add(work_ptr, 1, sem="relaxed")
    mbarrier.wait(keys_empty.index(0), keys_parity)
    put_number(tile_numbers, 0, NO_MORE)
    mbarrier.arrive(keys_full.index(0), count=1)


@gluon.jit
def add_block(
    scores, gradient, v_gradient, k_gradient, queries, slot, columns, col_start, col_end,
    scale_log2, BLOCK_M: gl.constexpr, HEAD_DIM: gl.constexpr, SCORES: gl.constexpr,
    WEIGHTS: gl.constexpr,
):  # fmt: skip
    """Ask for what the queries in a slot add to dv and dk; also returns the operands in use.

    `gradient` is the product under way for the gradients of the weights.
    """
    q_slots, out_gradient_slots, lse_slots, delta_slots, block_queries, _, _ = queries
    dtype: gl.constexpr = q_slots.dtype
    weights = weights_of(
        scores, lse_slots.index(slot).load(SCORES), get_number(block_queries, slot), columns,
        col_start, col_end, scale_log2, SCORES,
    )  # fmt: skip
    operand = gl.convert_layout(weights.to(dtype), WEIGHTS)
    out_gradient = out_gradient_slots.index(slot).reshape([BLOCK_M, HEAD_DIM])
    v_sums = warpgroup_mma(operand, out_gradient, v_gradient, is_async=True)
    weights_gradient = warpgroup_mma_wait(1, deps=[gradient])
    delta = delta_slots.index(slot).load(SCORES)
    scores_gradient = (weights * (weights_gradient - delta)).to(dtype)
    gradient_operand = gl.convert_layout(scores_gradient, WEIGHTS)
    q = q_slots.index(slot).reshape([BLOCK_M, HEAD_DIM])
    k_sums = warpgroup_mma(gradient_operand, q, k_gradient, is_async=True)
    return v_sums, k_sums, operand, gradient_operand


@gluon.jit
def key_value_gradient_consumer(
    keys, queries, gradients, columns, bounds, poisoned_ptr, tokens, scale,
    HALF_NUMBER: gl.constexpr, BLOCK_M: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
):  # fmt: skip
    """One half of each tile: 64 keys, over all queries of their group of heads.

    Products follow each other without a wait for all of them: the weights of a block of queries
    are made under the product for the gradients of weights, those gradients under the product that
    sums up dv, and the next scores are asked for behind the product that sums up dk.
    """
    k_halves, v_halves, tile_numbers, keys_full, keys_empty = keys
    q_slots, out_gradient_slots, lse_slots, delta_slots, block_queries, full, empty = queries
    k_gradient_desc, v_gradient_desc, k_gradient_halves, v_gradient_halves = gradients
    col_start_ptr, col_end_ptr = bounds
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_M, 16]
    )
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16]
    )
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    dtype: gl.constexpr = k_gradient_desc.dtype
    scale_log2 = scale * LOG2_E
    no_scores = gl.zeros([64, BLOCK_M], gl.float32, SCORES)
    no_sums = gl.zeros([64, HEAD_DIM], gl.float32, SUMS)
    k = k_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM])
    v = v_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM])
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, SCORES))
    slot = 0
    parity = 0
    mbarrier.wait(keys_full.index(0), 0)
    keys_parity = 1
    work = get_number(tile_numbers, 0)
    while work != NO_MORE:
        blocks = get_number(tile_numbers, 1)
        key = get_number(tile_numbers, 2) + HALF_NUMBER * 64 + row
        # Nobody sees what is past the last key.
        col_end = gl.load(col_end_ptr + key, mask=key < tokens, other=0)
        if CAUSAL:
            col_start = key
        else:
            col_start = gl.load(col_start_ptr + key, mask=key < tokens, other=0)

        mbarrier.wait(full.index(slot), parity)
        q = transposed(q_slots, slot, BLOCK_M, HEAD_DIM)
        out_gradient = transposed(out_gradient_slots, slot, BLOCK_M, HEAD_DIM)
        product = warpgroup_mma(k, q, no_scores, use_acc=False, is_async=True)
        gradient = warpgroup_mma(v, out_gradient, no_scores, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[product])
        v_sums, k_sums, operand, gradient_operand = add_block(
            scores, gradient, no_sums, no_sums, queries, slot, columns, col_start, col_end,
            scale_log2, BLOCK_M, HEAD_DIM, SCORES, WEIGHTS,
        )  # fmt: skip

        for _ in range(1, blocks):
            last_slot = slot
            slot, parity = next_slot(slot, parity, STAGES)
            mbarrier.wait(full.index(slot), parity)
            q = transposed(q_slots, slot, BLOCK_M, HEAD_DIM)
            out_gradient = transposed(out_gradient_slots, slot, BLOCK_M, HEAD_DIM)
            product = warpgroup_mma(k, q, no_scores, use_acc=False, is_async=True)
            v_gradient, k_gradient, operand, gradient_operand = warpgroup_mma_wait(
                1, deps=[v_sums, k_sums, operand, gradient_operand]
            )
            gradient = warpgroup_mma(v, out_gradient, no_scores, use_acc=False, is_async=True)
            mbarrier.arrive(empty.index(last_slot), count=1)
            scores = warpgroup_mma_wait(1, deps=[product])
            v_sums, k_sums, operand, gradient_operand = add_block(
                scores, gradient, v_gradient, k_gradient, queries, slot, columns, col_start,
                col_end, scale_log2, BLOCK_M, HEAD_DIM, SCORES, WEIGHTS,
            )  # fmt: skip

        v_gradient, k_gradient, operand, gradient_operand = warpgroup_mma_wait(
            0, deps=[v_sums, k_sums, operand, gradient_operand]
        )
        mbarrier.arrive(empty.index(slot), count=1)
        # Looked up again: in the loop there was no register for them.
        work = get_number(tile_numbers, 0)
        mine = get_number(tile_numbers, 2) + HALF_NUMBER * 64
        key_head = get_number(tile_numbers, 3)
        mbarrier.arrive(keys_empty.index(0), count=1)
        slot, parity = next_slot(slot, parity, STAGES)

        # 0 times NaN is NaN: what a key may not see has reached it if that is not finite.
        poisoned = gl.sum(k_gradient * 0.0 + v_gradient * 0.0, 1) != 0.0
        flags = poisoned_ptr + work + gl.zeros([64], gl.int32, gl.SliceLayout(1, SUMS))
        gl.store(flags, 1, mask=poisoned)
        tma.store_wait(0)  # of the tile before
        k_gradient_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM]).store(
            (k_gradient * scale).to(dtype)
        )
        v_gradient_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM]).store(v_gradient.to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(
            k_gradient_desc, [key_head, mine, 0], k_gradient_halves.index(HALF_NUMBER)
        )
        tma.async_copy_shared_to_global(
            v_gradient_desc, [key_head, mine, 0], v_gradient_halves.index(HALF_NUMBER)
        )
        mbarrier.wait(keys_full.index(0), keys_parity)
        keys_parity ^= 1
        work = get_number(tile_numbers, 0)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tokens", "key_heads", "group"])
def attention_key_value_gradient_gluon(
    q_desc,  # [Hq, T, D] in blocks [1, BLOCK_M, D]
    out_gradient_desc,
    k_desc,  # [Hkv, T, D] in blocks [1, 64, D]
    v_desc,
    k_gradient_desc,
    v_gradient_desc,
    lse_log2_desc,  # float32 [Hq, T] in blocks [1, BLOCK_M]
    delta_desc,
    order_ptr,  # int32 [tiles of 128 keys]: the longest first
    col_start_ptr,  # int32 [T]
    col_end_ptr,
    work_ptr,  # int32 [1], zero: how many tiles have been handed out
    poisoned_ptr,  # int32, one a tile, zero: set where sums are not finite
    tokens,
    key_heads,
    group,  # query heads of a key head
    scale,
    BLOCK_M: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
):
    """dk and dv of 128 keys a tile, over all queries of their group of heads."""
    gl.static_assert(STAGES >= 2, "a block is given back when the next one has come")
    half: gl.constexpr = [2, 1, 64, HEAD_DIM]
    block: gl.constexpr = [STAGES, 1, BLOCK_M, HEAD_DIM]
    row: gl.constexpr = [STAGES, 1, BLOCK_M]
    numbers: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    keys = (
        gl.allocate_shared_memory(k_desc.dtype, half, k_desc.layout),
        gl.allocate_shared_memory(v_desc.dtype, half, v_desc.layout),
        gl.allocate_shared_memory(gl.int32, [4, 1], numbers),
        new_barriers(1, 1),
        new_barriers(1, 2),
    )
    queries = (
        gl.allocate_shared_memory(q_desc.dtype, block, q_desc.layout),
        gl.allocate_shared_memory(out_gradient_desc.dtype, block, out_gradient_desc.layout),
        gl.allocate_shared_memory(gl.float32, row, lse_log2_desc.layout),
        gl.allocate_shared_memory(gl.float32, row, delta_desc.layout),
        gl.allocate_shared_memory(gl.int32, [STAGES, 1], numbers),
        new_barriers(STAGES, 1),
        new_barriers(STAGES, 2),
    )
    gradients = (
        k_gradient_desc,
        v_gradient_desc,
        gl.allocate_shared_memory(k_desc.dtype, half, k_gradient_desc.layout),
        gl.allocate_shared_memory(v_desc.dtype, half, v_gradient_desc.layout),
    )
    sources = (q_desc, out_gradient_desc, k_desc, v_desc, lse_log2_desc, delta_desc)
    bounds = (col_start_ptr, col_end_ptr)
    columns = new_columns(BLOCK_M)
    gl.warp_specialize(
        [
            (
                key_value_gradient_consumer,
                (
                    keys, queries, gradients, columns, bounds, poisoned_ptr, tokens, scale,
                    gl.constexpr(0), BLOCK_M, HEAD_DIM, STAGES, CAUSAL,
                ),
            ),
            (
                key_value_gradient_consumer,
                (
                    keys, queries, gradients, columns, bounds, poisoned_ptr, tokens, scale,
                    gl.constexpr(1), BLOCK_M, HEAD_DIM, STAGES, CAUSAL,
                ),
            ),
            (
                key_value_gradient_producer,
                (
                    sources, keys, queries, bounds, order_ptr, work_ptr, tokens, key_heads, group,
                    BLOCK_M, STAGES, CAUSAL,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, 3 * 168 - 2 * CONSUMER_REGISTERS],  # of the 168 of each at launch
    )  # fmt: skip
