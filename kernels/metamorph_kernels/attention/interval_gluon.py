"""Launches of the warp-specialised interval attention kernels for Hopper, in Gluon."""

import torch
import triton
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from metamorph_kernels.attention import tiles_gluon
from metamorph_kernels.attention.forward_gluon import attention_forward_gluon
from metamorph_kernels.attention.key_value_gradient_gluon import (
    attention_key_value_gradient_gluon,
)
from metamorph_kernels.attention.launch_triton import packed_heads, programs, strides
from metamorph_kernels.attention.query_gradient_gluon import attention_query_gradient_gluon
from metamorph_kernels.attention.repair_triton import (
    FLAGS,
    repair_forward,
    repair_key_value_gradient,
    repair_query_gradient,
)
from metamorph_kernels.attention.tile_order_triton import longest_first
from metamorph_kernels.attention.tiles_gluon import LAUNCH_REGISTERS, ROWS, WARPS


def launch_forward(
    q: Tensor,  # [T, Hq, D], describable, as k and v
    k: Tensor,  # [T, Hkv, D]
    v: Tensor,
    out: Tensor,  # [T, Hq, D], dense, to be written
    lse: Tensor,  # float32 [Hq, T], to be written
    row_start: Tensor,  # int32 [T]
    row_end: Tensor,
    causal: bool,
    scale: float,
) -> None:
    """Attention, and once more the tiles in which a number is not finite."""
    tokens, _, head_dim = q.shape
    key_heads = k.shape[1]
    tiles = tiles_gluon.GLUON_TILES["forward", head_dim]
    group, pack, span, count = query_tiles(q, k)
    counter, poisoned = work_and_flags(count, q.device)
    attention_forward_gluon[programs(q, pack, span)](
        describe(q, pack, ROWS // pack),
        describe(k, 1, tiles.block),
        describe(v, 1, tiles.block),
        describe(out, pack, ROWS // pack),
        lse,
        row_start,
        row_end,
        counter,
        poisoned,
        tokens,
        key_heads,
        scale,
        GROUP=group,
        PACK=pack,
        BLOCK_N=tiles.block,
        HEAD_DIM=head_dim,
        STAGES=tiles.stages,
        CAUSAL=causal,
        TAKE_TURNS=tiles.take_turns,
        CONSUMER_REGISTERS=tiles.consumer_registers,
        num_warps=WARPS,
        maxnreg=LAUNCH_REGISTERS,
    )
    repair_forward[(triton.cdiv(count, FLAGS),)](
        q, k, v, out, lse, row_start, row_end, poisoned, tokens, count, *strides(q, k, v, out),
        key_heads, scale, HEAD_DIM=head_dim, GROUP=group, PACK=pack, BLOCK_M=2 * ROWS,
        CAUSAL=causal, num_warps=2 * WARPS, num_stages=1,
    )  # fmt: skip


def launch_backward(
    q: Tensor,  # [T, Hq, D], describable, as k, v and out_gradient
    k: Tensor,  # [T, Hkv, D]
    v: Tensor,
    out: Tensor,  # [T, Hq, D], dense
    out_gradient: Tensor,  # [T, Hq, D]
    lse: Tensor,  # float32 [Hq, T]
    lse_gradient: Tensor,
    lse_log2: Tensor,  # float32 [Hq, T] in rows at multiples of 16 bytes, to be written, as delta
    delta: Tensor,
    q_gradient: Tensor,  # [T, Hq, D], dense, to be written, as the two below
    k_gradient: Tensor,
    v_gradient: Tensor,
    bounds: tuple[Tensor, Tensor, Tensor, Tensor],  # int32 [T] each: of rows, then of columns
    causal: bool,
    scale: float,
) -> None:
    """All gradients, and once more the tiles in which a number is not finite."""
    tokens, _, head_dim = q.shape
    key_heads = k.shape[1]
    row_start, row_end, col_start, col_end = bounds
    statistic_stride = delta.stride(0)
    group, pack, span, count = query_tiles(q, k)
    tiles = tiles_gluon.GLUON_TILES["query_gradient", head_dim]
    counter, poisoned = work_and_flags(count, q.device)
    options = {"CAUSAL": causal, "num_warps": WARPS, "maxnreg": LAUNCH_REGISTERS}
    repair = {"HEAD_DIM": head_dim, "GROUP": group, "CAUSAL": causal, "num_warps": 2 * WARPS}
    attention_query_gradient_gluon[programs(q, pack, span)](
        *(describe(tensor, pack, ROWS // pack) for tensor in (q, out, out_gradient)),
        *(describe(tensor, 1, tiles.block) for tensor in (k, v)),
        describe(q_gradient, pack, ROWS // pack), lse, lse_gradient, lse_log2, delta, row_start,
        row_end, counter, poisoned, tokens, statistic_stride, key_heads, scale, GROUP=group,
        PACK=pack, BLOCK_N=tiles.block, HEAD_DIM=head_dim, STAGES=tiles.stages,
        CONSUMER_REGISTERS=tiles.consumer_registers, **options,
    )  # fmt: skip
    repair_query_gradient[(triton.cdiv(count, FLAGS),)](
        q, k, v, out_gradient, q_gradient, lse_log2, delta, row_start, row_end, poisoned, tokens,
        count, statistic_stride, *strides(q, k, v, out_gradient, q_gradient), key_heads, scale,
        PACK=pack, BLOCK_M=2 * ROWS, num_stages=1, **repair,
    )  # fmt: skip

    tiles = tiles_gluon.GLUON_TILES["key_value_gradient", head_dim]
    count = triton.cdiv(tokens, 2 * ROWS) * key_heads
    counter, poisoned = work_and_flags(count, q.device)
    attention_key_value_gradient_gluon[programs(k, 1, 2 * ROWS)](
        *(describe(tensor, 1, tiles.block) for tensor in (q, out_gradient)),
        *(describe(tensor, 1, ROWS) for tensor in (k, v, k_gradient, v_gradient)),
        *(describe_statistic(tensor, tiles.block) for tensor in (lse_log2, delta)),
        longest_first(col_start, col_end, causal, 2 * ROWS), col_start, col_end, counter, poisoned,
        tokens, key_heads, group, scale,
        BLOCK_M=tiles.block, HEAD_DIM=head_dim, STAGES=tiles.stages,
        CONSUMER_REGISTERS=tiles.consumer_registers, **options,
    )  # fmt: skip
    repair_key_value_gradient[(triton.cdiv(count, FLAGS),)](
        q, k, v, out_gradient, k_gradient, v_gradient, lse_log2, delta, col_start, col_end,
        poisoned, tokens, count, statistic_stride, *strides(q, k, v, out_gradient), key_heads,
        scale, BLOCK_N=2 * ROWS, num_stages=1, **repair,
    )  # fmt: skip


def query_tiles(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """Heads of a group, how many of them a tile packs, its tokens, and how many tiles there are."""
    tokens, query_heads, _ = q.shape
    group = query_heads // k.shape[1]
    pack = packed_heads(group)
    span = 2 * ROWS // pack
    return group, pack, span, triton.cdiv(tokens, span) * (query_heads // pack)


def work_and_flags(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many tiles have been handed out, [1], and which are not finite, [count]: zeros, int32."""
    counter, flags = torch.zeros(1 + count, dtype=torch.int32, device=device).split([1, count])
    return counter, flags


def describe_statistic(tensor: Tensor, tokens: int) -> TensorDescriptor:
    """float32 [Hq, T] in blocks of `tokens` of a head."""
    layout = NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, tokens], layout)


def describe(tensor: Tensor, heads: int, tokens: int) -> TensorDescriptor:
    """A describable [T, H, D] as [H, T, D] in blocks of `heads` x `tokens` x all of D."""
    view = tensor.transpose(0, 1)
    block = [heads, tokens, view.shape[2]]
    layout = NVMMASharedLayout(
        swizzle_byte_width=128, element_bitwidth=8 * tensor.element_size(), rank=3
    )
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block, layout)
