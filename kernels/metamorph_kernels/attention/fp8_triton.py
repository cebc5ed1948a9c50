"""Triton kernel of interval attention with float8 matrix products, forward only: for prefill.

FlashAttention with online softmax, as a persistent kernel, with a scale for each head.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.attention.forward import query_tile, row_pointers
from metamorph_kernels.attention.fp8_heads_triton import quantise_qkv
from metamorph_kernels.attention.interval_triton import Tiles
from metamorph_kernels.attention.isolated import LOG2_E, attend_by_keys, is_poisoned, load_rows
from metamorph_kernels.attention.launch_triton import (
    describe,
    packed_heads,
    programs,
    work_lists,
)
from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.descriptors import describable
from metamorph_kernels.float8 import WEIGHT_SCALE
from metamorph_kernels.intervals import Intervals

LOG2_WEIGHT_SCALE = tl.constexpr(math.log2(WEIGHT_SCALE))
COPY_ALIGNMENT = tl.constexpr(16)  # bytes
TILES = {
    64: Tiles(128, 128, num_warps=8, num_stages=3),
    128: Tiles(128, 128, num_warps=8, num_stages=3),
}  # by padded head dim


@triton.jit(do_not_specialize=["tokens", "chunks"])
def attention_forward_fp8(
    q_ptr,  # float8 [Hq, T, D], dense
    k_ptr,  # float8 [Hkv, T, D], dense
    v_ptr,  # float8 [Hkv, D, chunks * COPY_ALIGNMENT]
    k_desc,  # [Hkv, T, D] in blocks [1, BLOCK_N, BLOCK_D]
    v_desc,  # [Hkv, D, T] in blocks [1, BLOCK_D, BLOCK_N]: float8 products want keys dense
    out_desc,  # [Hq, T, D] in blocks [PACK, BLOCK_M / PACK, BLOCK_D]
    q_scale_ptr,  # float32 [Hq]
    k_scale_ptr,  # float32 [Hkv]
    v_scale_ptr,
    lse_ptr,  # float32 [Hq, T], base 2: written only of tiles to be computed again
    row_start_ptr,  # int32 [T]
    row_end_ptr,
    work_ptr,  # int32 [1], zero
    poisoned_ptr,  # int32, one a tile: of a tile to be computed again, the one before it
    tokens,
    chunks,
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
    """`attention_forward` without lse: the scales of q and k join that of the scores.

    Tiles that are computed again do not round the weights.
    """
    head_blocks = key_heads * (GROUP // PACK)
    tiles = tl.cdiv(tokens, BLOCK_M // PACK)
    poisoned = -1  # the last of this program's tiles to be computed again, the head of a list
    work = tl.program_id(0)
    while work < tiles * head_blocks:
        next_work = tl.num_programs(0) + tl.atomic_add(work_ptr, 1, sem="relaxed")
        head = (work % head_blocks) * PACK
        key_head = head // GROUP
        first = (tiles - 1 - work // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, full_start, full_stop = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )

        row_head = head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)
        scale_log2 = tl.load(q_scale_ptr + row_head) * tl.load(k_scale_ptr + key_head)
        scale_log2 *= scale * LOG2_E
        head_stride = tokens.to(tl.int64) * HEAD_DIM
        queries = row_pointers(q_ptr, HEAD_DIM, head_stride, head, first, PACK, BLOCK_M)
        q = load_rows(queries, token < tokens, HEAD_DIM, BLOCK_D)
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

        out = accumulator * (tl.load(v_scale_ptr + key_head) / total)[:, None]
        if is_poisoned(out):
            lse = maximum - LOG2_WEIGHT_SCALE + tl.log2(total)
            statistic = row_head.to(tl.int64) * tokens + token
            tl.store(lse_ptr + statistic, lse, mask=token < tokens)
            tl.store(poisoned_ptr + work, poisoned)
            poisoned = work
        else:
            block = out.to(out_desc.dtype).reshape([PACK, BLOCK_M // PACK, BLOCK_D])
            out_desc.store([head, first, 0], block)
        work = next_work

    while poisoned >= 0:
        tl.debug_barrier()  # other threads wrote the list and lse
        head = (poisoned % head_blocks) * PACK
        key_head = (head // GROUP).to(tl.int64)
        first = (tiles - 1 - poisoned // head_blocks) * (BLOCK_M // PACK)
        token, row_start, row_end, start, stop, _, _ = query_tile(
            row_start_ptr, row_end_ptr, first, tokens, PACK, BLOCK_M, CAUSAL
        )
        row_head = head + tl.arange(0, BLOCK_M) // (BLOCK_M // PACK)
        statistic = row_head.to(tl.int64) * tokens + token
        head_stride = tokens.to(tl.int64) * HEAD_DIM
        value_stride = chunks * COPY_ALIGNMENT
        out = attend_by_keys(
            row_pointers(q_ptr, HEAD_DIM, head_stride, head, first, PACK, BLOCK_M),
            token < tokens,
            k_ptr + key_head * head_stride,
            v_ptr + key_head * HEAD_DIM * value_stride,
            HEAD_DIM, 1, value_stride, start, stop, row_start, row_end,
            tl.load(q_scale_ptr + row_head) * tl.load(k_scale_ptr + key_head) * (scale * LOG2_E),
            tl.load(lse_ptr + statistic, mask=token < tokens, other=0.0),
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        out = (out * tl.load(v_scale_ptr + key_head)).to(out_desc.dtype)
        out_desc.store([head, first, 0], out.reshape([PACK, BLOCK_M // PACK, BLOCK_D]))
        poisoned = tl.load(poisoned_ptr + poisoned)


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
    key_heads = k.shape[1]
    out = torch.empty((tokens, query_heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((query_heads, tokens), dtype=torch.float32, device=q.device)
    q, k, v, *scales = quantise_qkv(*map(describable, (q, k, v)))
    block_d = triton.next_power_of_2(head_dim)
    tiles = TILES[block_d]
    pack = packed_heads(query_heads // key_heads)
    packed = (pack, tiles.block_m // pack)
    with torch.cuda.device_of(q):
        attention_forward_fp8[programs(out, *packed)](
            q,
            k,
            v,
            TensorDescriptor.from_tensor(k, [1, tiles.block_n, block_d]),
            TensorDescriptor.from_tensor(v, [1, block_d, tiles.block_n]),
            describe(out, *packed),
            *scales,
            lse,
            row_start,
            row_end,
            *work_lists(out, *packed),
            tokens,
            v.stride(1) // COPY_ALIGNMENT.value,
            key_heads,
            scale,
            HEAD_DIM=head_dim,
            GROUP=query_heads // key_heads,
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


def compilations() -> Iterator[Compilation]:
    """The kernel with every head dim and group, and every tile with every dtype and mask."""
    elements, masks = ("bf16", "fp16", "fp32"), (True, False)
    for head_dim, element, causal, group in product((64, 128), elements, masks, (1, 2, 4, 8)):
        yield _compilation(element, head_dim, causal, group)
    # Computed as 128, with masked loads.
    for head_dim, (causal, group) in product((80, 96), ((True, 1), (True, 4), (False, 4))):
        yield _compilation("bf16", head_dim, causal, group)
    yield _compilation("bf16", 128, causal=True, group=3)


def _compilation(element: str, head_dim: int, causal: bool, group: int) -> Compilation:
    block_d = triton.next_power_of_2(head_dim)
    tiles = TILES[block_d]
    pack = packed_heads(group)
    arguments = {
        "q_ptr": "*fp8e4nv",
        "k_ptr": "*fp8e4nv",
        "v_ptr": "*fp8e4nv",
        "k_desc": descriptor_type("fp8e4nv", 1, tiles.block_n, block_d),
        "v_desc": descriptor_type("fp8e4nv", 1, block_d, tiles.block_n),
        "out_desc": descriptor_type(element, pack, tiles.block_m // pack, block_d),
        "q_scale_ptr": "*fp32",
        "k_scale_ptr": "*fp32",
        "v_scale_ptr": "*fp32",
        "lse_ptr": "*fp32",
        "row_start_ptr": "*i32",
        "row_end_ptr": "*i32",
        "work_ptr": "*i32",
        "poisoned_ptr": "*i32",
        "tokens": "i32",
        "chunks": "i32",
        "key_heads": "i32",
        "scale": "fp32",
        "HEAD_DIM": head_dim,
        "GROUP": group,
        "PACK": pack,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": block_d,
        "CAUSAL": causal,
    }
    mask = "causal" if causal else "spans"
    return Compilation(
        kernel=attention_forward_fp8,
        configuration=f"{element} out D={head_dim} {mask} group {group} "
        f"{tiles.block_m}x{tiles.block_n}",
        arguments=arguments,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
