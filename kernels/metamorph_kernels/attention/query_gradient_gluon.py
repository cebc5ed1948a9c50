"""Interval attention, gradient of queries, warp-specialised for Hopper in Gluon.

One warp brings queries, gradients, and then the keys and values that they see, by TMA; two warp
groups of 64 rows each compute, and share the keys. It is a persistent kernel, one block an SM: the
producer takes tiles from a counter, and brings the next ones while gradients are still on their way
out.
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
from metamorph_kernels.attention.pipeline_gluon import (
    LOG2_E,
    get_number,
    new_barriers,
    next_slot,
    put_number,
)
from metamorph_kernels.attention.query_tiles_gluon import NO_MORE, first_token, tile_bounds


@gluon.jit
def query_gradient_producer(
    sources, rows, keys, bounds, work_ptr, tokens, key_heads, GROUP: gl.constexpr,
    PACK: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Takes tiles until there are no more, and sends what the consumers need, in their order."""
    q_desc, out_desc, out_gradient_desc, k_desc, v_desc = sources
    row_start_ptr, row_end_ptr = bounds
    q_halves, out_halves, out_gradient_halves, tile_numbers, rows_full, rows_empty, out_empty = rows
    k_slots, v_slots, block_keys, full, empty = keys
    SPAN: gl.constexpr = 128 // PACK  # tokens of a tile
    HALF: gl.constexpr = SPAN // 2
    head_blocks = key_heads * (GROUP // PACK)
    tiles = gl.cdiv(tokens, SPAN)
    rows_parity = 1  # the phase before the first is over
    slot = 0
    parity = 1
    work = gl.program_id(0)
    while work < tiles * head_blocks:
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        first = first_token(work, tokens, key_heads, GROUP, PACK)
        start, stop, full_start, full_stop = tile_bounds(
            row_start_ptr, row_end_ptr, first, SPAN, tokens, CAUSAL
        )
        mbarrier.wait(rows_empty.index(0), rows_parity)
        put_number(tile_numbers, 0, work)
        put_number(tile_numbers, 1, gl.cdiv(stop - start, BLOCK_N))
        mbarrier.expect(rows_full.index(0), 6 * q_desc.block_type.nbytes)
        for half in gl.static_range(2):
            place = [head, first + half * HALF, 0]
            tma.async_copy_global_to_shared(q_desc, place, rows_full.index(0), q_halves.index(half))
            tma.async_copy_global_to_shared(
                out_gradient_desc, place, rows_full.index(0), out_gradient_halves.index(half)
            )
        mbarrier.wait(out_empty.index(0), rows_parity)
        for half in gl.static_range(2):
            tma.async_copy_global_to_shared(
                out_desc, [head, first + half * HALF, 0], rows_full.index(0), out_halves.index(half)
            )
        rows_parity ^= 1
        for key in range(start, stop, BLOCK_N):
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), parity)
            put_block(block_keys, slot, key, BLOCK_N, full_start, full_stop)
            mbarrier.expect(ready, 2 * k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(k_desc, [key_head, key, 0], ready, k_slots.index(slot))
            tma.async_copy_global_to_shared(v_desc, [key_head, key, 0], ready, v_slots.index(slot))
            slot, parity = next_slot(slot, parity, STAGES)
        work = gl.num_programs(0) + gl.atomic_add(work_ptr, 1, sem="relaxed")
    mbarrier.wait(rows_empty.index(0), rows_parity)
    put_number(tile_numbers, 0, NO_MORE)
    mbarrier.arrive(rows_full.index(0), count=1)


@gluon.jit
def query_gradient_consumer(
    q_gradient_desc, rows, keys, columns, statistics, bounds, poisoned_ptr, tokens, key_heads,
    scale, HALF_NUMBER: gl.constexpr, GROUP: gl.constexpr, PACK: gl.constexpr,
    BLOCK_N: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """One half of each tile: 64 rows, PACK heads times 64 / PACK tokens.

    Products follow each other without a wait for all of them: the weights of a block of keys are
    made under the product for the gradients of weights, and the next scores are asked for behind
    the product that sums up dq.
    """
    q_halves, out_halves, out_gradient_halves, tile_numbers, rows_full, rows_empty, out_empty = rows
    k_slots, v_slots, block_keys, full, empty = keys
    lse_ptr, lse_gradient_ptr, lse_log2_ptr, delta_ptr, statistic_stride = statistics
    row_start_ptr, row_end_ptr = bounds
    HALF: gl.constexpr = 64 // PACK
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HEAD_DIM, 16]
    )
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SUMS, k_width=2)
    ROWS: gl.constexpr = gl.SliceLayout(1, SCORES)
    dtype: gl.constexpr = q_gradient_desc.dtype
    scale_log2 = scale * LOG2_E
    head_blocks = key_heads * (GROUP // PACK)
    no_scores = gl.zeros([64, BLOCK_N], gl.float32, SCORES)
    no_sums = gl.zeros([64, HEAD_DIM], gl.float32, SUMS)
    q = q_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM])
    out = out_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM])
    out_gradient = out_gradient_halves.index(HALF_NUMBER).reshape([64, HEAD_DIM])
    row = gl.arange(0, 64, layout=ROWS)
    slot = 0
    parity = 0
    mbarrier.wait(rows_full.index(0), 0)
    rows_parity = 1
    work = get_number(tile_numbers, 0)
    while work != NO_MORE:
        blocks = get_number(tile_numbers, 1)
        head = (work % head_blocks) * PACK
        mine = first_token(work, tokens, key_heads, GROUP, PACK) + HALF_NUMBER * HALF
        token = mine + row % HALF
        is_known = token < tokens
        known = gl.minimum(token, tokens - 1)  # rows past the last token repeat its bounds
        row_start = gl.load(row_start_ptr + known)
        if CAUSAL:
            row_end = known + 1
        else:
            row_end = gl.load(row_end_ptr + known)
        row_head = (head + row // HALF).to(gl.int64)
        given = row_head * tokens + token
        statistic = row_head * statistic_stride + token
        lse_log2 = gl.load(lse_ptr + given, mask=is_known, other=0.0) * LOG2_E
        lse_gradient = gl.load(lse_gradient_ptr + given, mask=is_known, other=0.0)

        mbarrier.wait(full.index(slot), parity)
        k = k_slots.index(slot).reshape([BLOCK_N, HEAD_DIM])
        v = transposed(v_slots, slot, BLOCK_N, HEAD_DIM)
        product = warpgroup_mma(q, k.permute([1, 0]), no_scores, use_acc=False, is_async=True)
        gradient = warpgroup_mma(out_gradient, v, no_scores, use_acc=False, is_async=True)
        # Under these products what this pass and the one for keys want to know of each row.
        weighted = out.load(SUMS).to(gl.float32) * out_gradient.load(SUMS).to(gl.float32)
        delta = gl.convert_layout(gl.sum(weighted, 1), ROWS) - lse_gradient
        gl.store(delta_ptr + statistic, delta, mask=is_known)
        gl.store(lse_log2_ptr + statistic, lse_log2, mask=is_known)
        scores = warpgroup_mma_wait(1, deps=[product])
        weights = weights_of(
            scores, lse_log2[:, None], get_number(block_keys, slot), columns, row_start, row_end,
            scale_log2, SCORES,
        )  # fmt: skip
        weights_gradient = warpgroup_mma_wait(0, deps=[gradient])
        scores_gradient = (weights * (weights_gradient - delta[:, None])).to(dtype)
        operand = gl.convert_layout(scores_gradient, WEIGHTS)
        sums = warpgroup_mma(operand, k, no_sums, use_acc=False, is_async=True)

        for _ in range(1, blocks):
            last_slot = slot
            slot, parity = next_slot(slot, parity, STAGES)
            mbarrier.wait(full.index(slot), parity)
            k = k_slots.index(slot).reshape([BLOCK_N, HEAD_DIM])
            v = transposed(v_slots, slot, BLOCK_N, HEAD_DIM)
            product = warpgroup_mma(q, k.permute([1, 0]), no_scores, use_acc=False, is_async=True)
            q_gradient, operand = warpgroup_mma_wait(1, deps=[sums, operand])
            mbarrier.arrive(empty.index(last_slot), count=1)
            gradient = warpgroup_mma(out_gradient, v, no_scores, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(1, deps=[product])
            weights = weights_of(
                scores, lse_log2[:, None], get_number(block_keys, slot), columns, row_start,
                row_end, scale_log2, SCORES,
            )  # fmt: skip
            weights_gradient = warpgroup_mma_wait(0, deps=[gradient])
            scores_gradient = (weights * (weights_gradient - delta[:, None])).to(dtype)
            operand = gl.convert_layout(scores_gradient, WEIGHTS)
            sums = warpgroup_mma(operand, k, q_gradient, is_async=True)

        q_gradient, operand = warpgroup_mma_wait(0, deps=[sums, operand])
        mbarrier.arrive(empty.index(slot), count=1)
        mbarrier.arrive(rows_empty.index(0), count=1)
        slot, parity = next_slot(slot, parity, STAGES)

        # 0 times NaN is NaN: what a row may not see has reached it if that is not finite.
        poisoned = gl.sum(q_gradient * 0.0, 1) != 0.0
        flags = poisoned_ptr + work + gl.zeros([64], gl.int32, gl.SliceLayout(1, SUMS))
        gl.store(flags, 1, mask=poisoned)
        # What attention gave is no longer needed: the result takes its place.
        out.store((q_gradient * scale).to(dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(
            q_gradient_desc, [head, mine, 0], out_halves.index(HALF_NUMBER)
        )
        tma.store_wait(0)
        mbarrier.arrive(out_empty.index(0), count=1)
        mbarrier.wait(rows_full.index(0), rows_parity)
        rows_parity ^= 1
        work = get_number(tile_numbers, 0)


@gluon.jit(do_not_specialize=["tokens", "statistic_stride", "key_heads"])
def attention_query_gradient_gluon(
    q_desc,  # [Hq, T, D] in blocks [PACK, 64 / PACK, D]
    out_desc,
    out_gradient_desc,
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, D]
    v_desc,
    q_gradient_desc,  # as q_desc
    lse_ptr,  # float32 [Hq, T]
    lse_gradient_ptr,
    lse_log2_ptr,  # float32 [Hq, T] in rows `statistic_stride` apart, written here: lse in base 2
    delta_ptr,  # as lse_log2_ptr, written here
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero: how many tiles have been handed out
    poisoned_ptr,  # int32, one a tile, zero: set where sums are not finite
    tokens,
    statistic_stride,
    key_heads,
    scale,
    GROUP: gl.constexpr,
    PACK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
):
    """dq in the tiles of the forward; for the pass for keys, delta = out . dout - dlse."""
    gl.static_assert(STAGES >= 2, "a block is given back when the next one has come")
    half: gl.constexpr = [2, PACK, 64 // PACK, HEAD_DIM]
    block: gl.constexpr = [STAGES, 1, BLOCK_N, HEAD_DIM]
    numbers: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    rows = (
        gl.allocate_shared_memory(q_desc.dtype, half, q_desc.layout),
        gl.allocate_shared_memory(out_desc.dtype, half, out_desc.layout),
        gl.allocate_shared_memory(out_gradient_desc.dtype, half, out_gradient_desc.layout),
        gl.allocate_shared_memory(gl.int32, [2, 1], numbers),
        new_barriers(1, 1),
        new_barriers(1, 2),
        new_barriers(1, 2),
    )
    keys = (
        gl.allocate_shared_memory(k_desc.dtype, block, k_desc.layout),
        gl.allocate_shared_memory(v_desc.dtype, block, v_desc.layout),
        gl.allocate_shared_memory(gl.int32, [STAGES, 1], numbers),
        new_barriers(STAGES, 1),
        new_barriers(STAGES, 2),
    )
    sources = (q_desc, out_desc, out_gradient_desc, k_desc, v_desc)
    statistics = (lse_ptr, lse_gradient_ptr, lse_log2_ptr, delta_ptr, statistic_stride)
    bounds = (row_start_ptr, row_end_ptr)
    columns = new_columns(BLOCK_N)
    gl.warp_specialize(
        [
            (
                query_gradient_consumer,
                (
                    q_gradient_desc, rows, keys, columns, statistics, bounds, poisoned_ptr, tokens,
                    key_heads, scale, gl.constexpr(0), GROUP, PACK, BLOCK_N, HEAD_DIM, STAGES,
                    CAUSAL,
                ),
            ),
            (
                query_gradient_consumer,
                (
                    q_gradient_desc, rows, keys, columns, statistics, bounds, poisoned_ptr, tokens,
                    key_heads, scale, gl.constexpr(1), GROUP, PACK, BLOCK_N, HEAD_DIM, STAGES,
                    CAUSAL,
                ),
            ),
            (
                query_gradient_producer,
                (
                    sources, rows, keys, bounds, work_ptr, tokens, key_heads, GROUP, PACK, BLOCK_N,
                    STAGES, CAUSAL,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, 3 * 168 - 2 * CONSUMER_REGISTERS],  # of the 168 of each at launch
    )  # fmt: skip
