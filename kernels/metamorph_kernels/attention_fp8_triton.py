"""Triton kernel of interval attention with float8 matrix products, forward only."""

import math
from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.attention_forward import LOG2_E, query_tile
from metamorph_kernels.attention_fp8 import WEIGHT_SCALE, quantise_heads
from metamorph_kernels.attention_triton import Tiles, describe, packed_heads, programs
from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.intervals import Intervals

LOG2_WEIGHT_SCALE = tl.constexpr(math.log2(WEIGHT_SCALE))
COPY_ALIGNMENT = tl.constexpr(16)  # bytes
TILES = {
    64: Tiles(128, 128, num_warps=8, num_stages=3),
    128: Tiles(128, 128, num_warps=8, num_stages=3),
}  # by padded head dim


@triton.jit(do_not_specialize=["tokens"])
def attention_forward_fp8(
    q_desc,  # float8 [Hq, T, D] in blocks [PACK, BLOCK_M / PACK, BLOCK_D]
    k_desc,  # float8 [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,  # float8 [Hkv, D, T] in blocks [1, BLOCK_D, BLOCK_N]: float8 products want keys dense
    out_desc,  # [Hq, T, D] as q
    q_scale_ptr,  # float32 [Hq]
    k_scale_ptr,  # float32 [Hkv]
    v_scale_ptr,
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
    """`attention_forward` without lse: the scales of q and k join that of the scores."""
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    work = tl.program_id(0)
    while work < tiles * head_blocks:
        next_work = tl.num_programs(0) + tl.atomic_add(work_ptr, 1)
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, full_start, full_stop = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )

        row_head = head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)
        scale_log2 = tl.load(q_scale_ptr + row_head) * tl.load(k_scale_ptr + key_head)
        scale_log2 *= scale * LOG2_E
        q = q_desc.load([head, first, 0]).reshape([BLOCK_M, BLOCK_D])
        accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        # Values lie with keys dense, and the copy engine wants 16-byte steps along that dimension.
        for key in tl.range(start // COPY_ALIGNMENT * COPY_ALIGNMENT, stop, BLOCK_N):
            k = k_desc.load([key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
            scores = tl.dot(q, k.T)
            if (key < full_start) | (key + BLOCK_N > full_stop):
                column = key + tl.arange(0, BLOCK_N)[None, :]
                visible = (column >= row_start[:, None]) & (column < row_end[:, None])
                scores = tl.where(visible, scores, float("-inf"))
            # Whole numbers in base 2: a later maximum then shifts weights by powers of two, and
            # the same weights are rounded alike wherever the tiles begin.
            new_maximum = tl.maximum(maximum, tl.ceil(tl.max(scores, 1) * scale_log2))
            reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            shift = reference - LOG2_WEIGHT_SCALE
            weights = tl.exp2(scores * scale_log2[:, None] - shift[:, None])
            correction = tl.exp2(maximum - reference)
            total = total * correction + tl.sum(weights, 1)
            accumulator = accumulator * correction[:, None]
            v = v_desc.load([key_head, 0, key]).reshape([BLOCK_D, BLOCK_N])
            accumulator = tl.dot(weights.to(v.dtype), v.T, accumulator)
            maximum = new_maximum

        value_scale = tl.load(v_scale_ptr + key_head)
        out = (accumulator * (value_scale / total)[:, None]).to(out_desc.dtype)
        out_desc.store([head, first, 0], out.reshape([PACK, BLOCK_M // PACK, BLOCK_D]))
        work = next_work


def interval_attention_fp8_triton(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float
) -> Tensor:
    """`interval_attention_fp8` of checked arguments."""
    return _attention_fp8(q, k, v, intervals.row_start, intervals.row_end, intervals.causal, scale)


@torch.library.custom_op("metamorph_kernels::interval_attention_fp8", mutates_args=())
def _attention_fp8(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hkv, D]
    v: Tensor,
    row_start: Tensor,  # int32 [T]
    row_end: Tensor,
    causal: bool,
    scale: float,
) -> Tensor:
    tokens, query_heads, head_dim = q.shape
    group = query_heads // k.shape[1]
    out = torch.empty((tokens, query_heads, head_dim), dtype=q.dtype, device=q.device)
    (q_rounded, q_scale), (k_rounded, k_scale), (v_rounded, v_scale) = map(
        quantise_heads, (q, k, v)
    )
    block_d = triton.next_power_of_2(head_dim)
    tiles = TILES[block_d]
    pack = packed_heads(group)
    packed = (pack, tiles.block_m // pack)
    with torch.cuda.device_of(q):
        attention_forward_fp8[programs(q, *packed)](
            describe(q_rounded, *packed),
            describe(k_rounded, 1, tiles.block_n),
            _describe_transposed(v_rounded, block_d, tiles.block_n),
            describe(out, *packed),
            q_scale,
            k_scale,
            v_scale,
            row_start,
            row_end,
            torch.zeros(1, dtype=torch.int32, device=q.device),
            tokens,
            k.shape[1],
            scale,
            GROUP=group,
            PACK=pack,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=block_d,
            CAUSAL=causal,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out


@_attention_fp8.register_fake
def _(q, k, v, row_start, row_end, causal, scale):
    return q.new_empty(q.shape)


def _describe_transposed(values: Tensor, block_d: int, block_n: int) -> TensorDescriptor:
    """[T, Hkv, D] copied to [Hkv, D, T], its rows aligned."""
    tokens, heads, head_dim = values.shape
    row = triton.cdiv(tokens, COPY_ALIGNMENT.value) * COPY_ALIGNMENT.value
    memory = torch.empty((heads, head_dim, row), dtype=values.dtype, device=values.device)
    dense = memory[:, :, :tokens]
    dense.copy_(values.permute(1, 2, 0))
    return TensorDescriptor(dense, list(dense.shape), list(dense.stride()), [1, block_d, block_n])


def compilations() -> Iterator[Compilation]:
    """The kernel in every shipped configuration."""
    for (block_d, tiles), element, causal, pack in product(
        TILES.items(), ("bf16", "fp16", "fp32"), (True, False), (1, 2, 4, 8)
    ):
        query_block = (pack, tiles.block_m // pack, block_d)
        yield Compilation(
            kernel=attention_forward_fp8,
            configuration=f"{element} out D<={block_d} {'causal' if causal else 'spans'} "
            f"pack {pack} {tiles.block_m}x{tiles.block_n}",
            arguments={
                "q_desc": descriptor_type("fp8e4nv", *query_block),
                "k_desc": descriptor_type("fp8e4nv", 1, tiles.block_n, block_d),
                "v_desc": descriptor_type("fp8e4nv", 1, block_d, tiles.block_n),
                "out_desc": descriptor_type(element, *query_block),
                "q_scale_ptr": "*fp32",
                "k_scale_ptr": "*fp32",
                "v_scale_ptr": "*fp32",
                "row_start_ptr": "*i32",
                "row_end_ptr": "*i32",
                "work_ptr": "*i32",
                "tokens": "i32",
                "key_heads": "i32",
                "scale": "fp32",
                "GROUP": pack,
                "PACK": pack,
                "BLOCK_M": tiles.block_m,
                "BLOCK_N": tiles.block_n,
                "BLOCK_D": block_d,
                "CAUSAL": causal,
            },
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
