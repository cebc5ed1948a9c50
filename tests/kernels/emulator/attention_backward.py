"""Launches of the warp-specialised backward of attention on the emulator."""

import torch
from torch import Tensor

from metamorph_kernels import Intervals
from tests.kernels.emulator.attention import Schedule, blocks, kernels
from tests.kernels.emulator.machine import launch
from tests.kernels.emulator.memory import Descriptor, Pointer

BLOCK_M = 64


def query_gradient(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hkv, D]
    v: Tensor,
    out: Tensor,
    lse: Tensor,  # [Hq, T]
    out_gradient: Tensor,
    lse_gradient: Tensor,
    intervals: Intervals,
    schedule: Schedule,
    *mutations: tuple[str, str],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq [T, Hq, D], lse in base 2 and delta [Hq, T], and which tiles are not finite."""
    tokens, query_heads, head_dim = q.shape
    key_heads, pack = k.shape[1], schedule.pack
    q_gradient = torch.full_like(q, torch.nan)
    stride = -(-tokens // 4) * 4
    lse_log2, delta = torch.full((2, query_heads, stride), torch.nan)
    poisoned = torch.zeros(-(-tokens // (128 // pack)) * (query_heads // pack), dtype=torch.int32)
    launch(
        kernels("query_gradient_gluon", *mutations).attention_query_gradient_gluon,
        (
            *(blocks(tensor, pack, 64 // pack) for tensor in (q, out, out_gradient)),
            *(blocks(tensor, 1, schedule.block_n) for tensor in (k, v)),
            blocks(q_gradient, pack, 64 // pack),
            *map(Pointer, (lse, lse_gradient, lse_log2, delta)),
            Pointer(intervals.row_start),
            Pointer(intervals.row_end),
            Pointer(torch.zeros(1, dtype=torch.int32)),
            Pointer(poisoned),
            torch.tensor(tokens, dtype=torch.int32),
            torch.tensor(stride, dtype=torch.int32),
            key_heads,
            head_dim**-0.5,
        ),
        programs=schedule.programs,
        seed=schedule.seed,
        GROUP=query_heads // key_heads,
        PACK=pack,
        BLOCK_N=schedule.block_n,
        HEAD_DIM=head_dim,
        STAGES=schedule.stages,
        CAUSAL=intervals.causal,
        CONSUMER_REGISTERS=240,
    )
    return q_gradient, lse_log2[:, :tokens], delta[:, :tokens], poisoned.bool()


def key_value_gradient(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hkv, D]
    v: Tensor,
    lse_log2: Tensor,  # [Hq, T]
    delta: Tensor,
    out_gradient: Tensor,
    intervals: Intervals,
    schedule: Schedule,
    *mutations: tuple[str, str],
) -> tuple[Tensor, Tensor, Tensor]:
    """dk and dv [T, Hkv, D], and which tiles are not finite."""
    tokens, query_heads, head_dim = q.shape
    key_heads = k.shape[1]
    k_gradient, v_gradient = torch.full((2, *k.shape), torch.nan, dtype=k.dtype)
    tiles = -(-tokens // 128)
    order = torch.arange(tiles, dtype=torch.int32).flip(0)  # any will do
    poisoned = torch.zeros(tiles * key_heads, dtype=torch.int32)
    launch(
        kernels("key_value_gradient_gluon", *mutations).attention_key_value_gradient_gluon,
        (
            *(blocks(tensor, 1, BLOCK_M) for tensor in (q, out_gradient)),
            *(blocks(tensor, 1, 64) for tensor in (k, v, k_gradient, v_gradient)),
            *(Descriptor(tensor, [1, BLOCK_M]) for tensor in (lse_log2, delta)),
            Pointer(order),
            Pointer(intervals.col_start),
            Pointer(intervals.col_end),
            Pointer(torch.zeros(1, dtype=torch.int32)),
            Pointer(poisoned),
            torch.tensor(tokens, dtype=torch.int32),
            key_heads,
            query_heads // key_heads,
            head_dim**-0.5,
        ),
        programs=schedule.programs,
        seed=schedule.seed,
        BLOCK_M=BLOCK_M,
        HEAD_DIM=head_dim,
        STAGES=schedule.stages,
        CAUSAL=intervals.causal,
        CONSUMER_REGISTERS=240,
    )
    return k_gradient, v_gradient, poisoned.bool()
