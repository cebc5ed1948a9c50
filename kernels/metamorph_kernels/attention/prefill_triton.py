"""Attention of new tokens over a KV cache in Triton: kernel, launch, and PyTorch operator.

Online softmax over the keys of a sequence, from its first to the last that a tile of queries sees.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.arguments import neighbouring_columns
from metamorph_kernels.attention.forward import row_pointers
from metamorph_kernels.attention.interval_triton import FLOAT32_TILES, Tiles
from metamorph_kernels.attention.isolated import LOG2_E, load_rows
from metamorph_kernels.attention.launch_triton import describe_cache, packed_heads
from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.prefill_rows import BLOCK_QUERIES

TILES = {  # by padded head dim
    64: Tiles(128, 128, num_warps=8, num_stages=3),
    128: Tiles(128, 128, num_warps=8, num_stages=3),
}


@triton.jit
def attend_keys(
    q,  # [BLOCK_M, BLOCK_D]
    k_desc,
    v_desc,
    sequence,
    key_head,
    key,  # the first of BLOCK_N keys
    stop,
    visible,  # int32 [BLOCK_M]: the keys of each row
    accumulator,
    maximum,
    total,
    scale_log2,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One step of the online softmax; of a step with a mask the keys from `stop` on count nothing.

    No key but the first step's first need be visible: from there on every maximum is finite.
    """
    k = k_desc.load([sequence, key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
    scores = tl.dot(q, k.T, input_precision="ieee")
    column = key + tl.arange(0, BLOCK_N)
    if MASKED:
        scores = tl.where(column[None, :] < visible[:, None], scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_maximum[:, None])
    correction = tl.exp2(maximum - new_maximum)
    total = total * correction + tl.sum(weights, 1)
    v = v_desc.load([sequence, key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
    if MASKED:
        v = tl.where((column < stop)[:, None], v, 0.0)  # what lies past the piece may be NaN
    accumulator = accumulator * correction[:, None]
    accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision="ieee")
    return accumulator, new_maximum, total


@triton.jit(do_not_specialize=["tiles_in_block"])
def prefill_forward(
    q_ptr,  # [T, Hq, D]
    k_desc,  # [B, Hkv, S, D] in blocks [1, 1, BLOCK_N, BLOCK_D]
    v_desc,
    out_ptr,  # [T, Hq, D]
    visible_ptr,  # int32 [T], never decreasing within a block
    blocks_ptr,  # int32 [blocks, 3]: sequence, first query, end of queries
    tiles_in_block,
    q_stride_token,
    q_stride_head,
    out_stride_token,
    out_stride_head,
    key_heads,
    scale,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """softmax(scale q k^T) v of a tile: BLOCK_M / PACK queries of one block times PACK heads.

    The heads of a group share a tile, as in interval attention, and keys and values are read once
    for all of them. Keys that every query of the tile sees come first, without a mask; the rest, a
    tile or two, in a loop of its own. That one is not pipelined: a masked v goes through registers
    to shared memory, which the stages of a pipeline would fill.
    """
    head_blocks = key_heads * (GROUP // PACK)
    head = (tl.program_id(0) % head_blocks) * PACK
    key_head = head // GROUP
    tile = tl.program_id(0) // head_blocks
    block = blocks_ptr + (tile // tiles_in_block) * 3
    sequence = tl.load(block)
    # Late queries see most keys: the longest tiles start first.
    place = tiles_in_block - 1 - tile % tiles_in_block
    first = tl.load(block + 1) + place * (BLOCK_M // PACK)
    end = tl.load(block + 2)
    if first >= end:
        return
    last = tl.minimum(first + BLOCK_M // PACK, end) - 1
    token = first + tl.arange(0, BLOCK_M) % (BLOCK_M // PACK)
    visible = tl.load(visible_ptr + tl.minimum(token, last))
    stop = tl.load(visible_ptr + last)
    full_stop = tl.load(visible_ptr + first) // BLOCK_N * BLOCK_N

    queries = row_pointers(q_ptr, q_stride_token, q_stride_head, head, first, PACK, BLOCK_M)
    q = load_rows(queries, token < end, HEAD_DIM, BLOCK_D)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    scale_log2 = scale * LOG2_E
    for key in tl.range(0, full_stop, BLOCK_N):
        accumulator, maximum, total = attend_keys(
            q, k_desc, v_desc, sequence, key_head, key, stop, visible, accumulator, maximum, total,
            scale_log2, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
    for key in tl.range(full_stop, stop, BLOCK_N, num_stages=1):
        accumulator, maximum, total = attend_keys(
            q, k_desc, v_desc, sequence, key_head, key, stop, visible, accumulator, maximum, total,
            scale_log2, BLOCK_N, BLOCK_D, True,
        )  # fmt: skip

    dimension = tl.arange(0, BLOCK_D)
    rows = row_pointers(out_ptr, out_stride_token, out_stride_head, head, first, PACK, BLOCK_M)
    # Not by TMA: the rows behind the last query belong to another piece.
    tl.store(
        rows[:, None] + dimension[None, :],
        (accumulator / total[:, None]).to(out_ptr.dtype.element_ty),
        mask=(token < end)[:, None] & (dimension < HEAD_DIM)[None, :],
    )


@torch.library.custom_op("metamorph_kernels::prefill_attention", mutates_args=())
def prefill_attention_triton(
    q: Tensor,  # [T, Hq, D]
    k_cache: Tensor,  # [B, S, Hkv, D]
    v_cache: Tensor,
    visible: Tensor,  # int32 [T]
    blocks: Tensor,  # int32 [blocks, 3]
    scale: float,
) -> Tensor:
    """`prefill_attention` of checked arguments; nothing is read on the host."""
    tokens, query_heads, head_dim = q.shape
    key_heads = k_cache.shape[2]
    q = neighbouring_columns(q)
    out = torch.empty((tokens, query_heads, head_dim), dtype=q.dtype, device=q.device)
    block_d = triton.next_power_of_2(head_dim)
    tiles = FLOAT32_TILES if q.dtype == torch.float32 else TILES[block_d]
    group = query_heads // key_heads
    pack = packed_heads(group)
    tiles_in_block = triton.cdiv(min(tokens, BLOCK_QUERIES), tiles.block_m // pack)
    with torch.cuda.device_of(q):
        prefill_forward[(blocks.shape[0] * tiles_in_block * (query_heads // pack),)](
            q,
            describe_cache("k_cache", k_cache, tiles.block_n),
            describe_cache("v_cache", v_cache, tiles.block_n),
            out,
            visible,
            blocks,
            tiles_in_block,
            *q.stride()[:2],
            *out.stride()[:2],
            key_heads,
            scale,
            HEAD_DIM=head_dim,
            GROUP=group,
            PACK=pack,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=block_d,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out


@prefill_attention_triton.register_fake
def _(q, k_cache, v_cache, visible, blocks, scale):
    return q.new_empty(q.shape)


def compilations() -> Iterator[Compilation]:
    """Every head dim, dtype and number of packed heads; float32 is for tests of exactness."""
    for head_dim in (64, 128):
        for element, group in product(("bf16", "fp16"), (1, 2, 4, 8)):
            yield _compilation(element, head_dim, group)
        yield _compilation("fp32", head_dim, group=4)
    for head_dim, group in product((80, 96), (1, 4)):  # computed as 128
        yield _compilation("bf16", head_dim, group)
    yield _compilation("bf16", 128, group=3)
    yield _compilation("bf16", 128, group=8, one_key_head=True)


def _compilation(
    element: str, head_dim: int, group: int, one_key_head: bool = False
) -> Compilation:
    block_d = triton.next_power_of_2(head_dim)
    tiles = FLOAT32_TILES if element == "fp32" else TILES[block_d]
    cache = descriptor_type(element, 1, 1, tiles.block_n, block_d)
    head_words = f"group {group}{' of one key head' if one_key_head else ''}"
    return Compilation(
        kernel=prefill_forward,
        configuration=f"{element} D={head_dim} {head_words} {tiles.block_m}x{tiles.block_n}",
        arguments={
            "q_ptr": f"*{element}",
            "k_desc": cache,
            "v_desc": cache,
            "out_ptr": f"*{element}",
            "visible_ptr": "*i32",
            "blocks_ptr": "*i32",
            "tiles_in_block": "i32",
            "q_stride_token": "i32:16",
            "q_stride_head": "i32:16",
            "out_stride_token": "i32:16",
            "out_stride_head": "i32:16",
            "key_heads": 1 if one_key_head else "i32",
            "scale": "fp32",
            "HEAD_DIM": head_dim,
            "GROUP": group,
            "PACK": packed_heads(group),
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_D": block_d,
        },
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        tensor_cores=element != "fp32",
    )
