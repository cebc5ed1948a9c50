"""Decoding attention over a KV cache in Triton: FlashDecoding, or split-K attention.

The keys of a sequence are split over programs, each with an online softmax; a second kernel joins
them by their log-sum-exp.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.attention.isolated import LOG2_E
from metamorph_kernels.attention.launch_triton import describe_cache
from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.multiprocessors import multiprocessors

BLOCK_N = {2: 64, 4: 16}  # keys a step, by bytes of an element; float32 is for tests of exactness
NUM_WARPS = 4
NUM_STAGES = 3
SMALLEST_ROWS = 16  # queries of a group in one tile: no fewer fill a matrix product
PROGRAMS_PER_SM = 4  # enough loads in flight that memory is the limit
MOST_SPLITS = 64


@triton.jit
def decode_split(
    q_ptr,  # [B, Hq, D]
    k_desc,  # [B, Hkv, S, D] in blocks [1, 1, BLOCK_N, BLOCK_D]
    v_desc,
    lengths_ptr,  # [B]
    partial_ptr,  # float32 [B, Hq, SPLITS, HEAD_DIM]
    lse_ptr,  # float32 [B, Hq, SPLITS], base 2
    key_heads,
    scale,
    q_stride_sequence,
    q_stride_head,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """All queries of one key head over one part of the keys of one sequence.

    Scores stand transposed, [keys, queries]: the keys fill a matrix product, the few queries do
    not. A part without keys leaves lse -inf.
    """
    sequence = (tl.program_id(0) // key_heads).to(tl.int64)
    key_head = tl.program_id(0) % key_heads
    split = tl.program_id(1)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    keys_per_split = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS) * BLOCK_N
    start = split * keys_per_split
    stop = tl.minimum(start + keys_per_split, length)

    row = tl.arange(0, ROWS)
    dimension = tl.arange(0, BLOCK_D)
    head = key_head * GROUP + row
    real = (dimension < HEAD_DIM)[:, None] & (row < GROUP)[None, :]
    q = tl.load(
        q_ptr + sequence * q_stride_sequence + head[None, :] * q_stride_head + dimension[:, None],
        mask=real,
        other=0.0,
    )  # [BLOCK_D, ROWS]
    accumulator = tl.zeros([BLOCK_D, ROWS], tl.float32)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    scale_log2 = scale * LOG2_E
    for key in tl.range(start, stop, BLOCK_N):
        k = k_desc.load([sequence.to(tl.int32), key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
        scores = tl.dot(k, q, input_precision="ieee")
        visible = key + tl.arange(0, BLOCK_N) < stop
        scores = tl.where(visible[:, None], scores * scale_log2, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 0))  # finite: a step has a visible key
        weights = tl.exp2(scores - new_maximum[None, :])
        correction = tl.exp2(maximum - new_maximum)
        total = total * correction + tl.sum(weights, 0)
        v = v_desc.load([sequence.to(tl.int32), key_head, key, 0]).reshape([BLOCK_N, BLOCK_D])
        v = tl.where(visible[:, None], v, 0.0)  # what lies past the length may be NaN
        accumulator = tl.dot(
            v.T, weights.to(v.dtype), accumulator * correction[None, :], input_precision="ieee"
        )
        maximum = new_maximum

    part = (sequence * key_heads * GROUP + head) * SPLITS + split  # [ROWS]
    divisor = tl.where(total > 0, total, 1.0)
    tl.store(
        partial_ptr + part[None, :] * HEAD_DIM + dimension[:, None],
        accumulator / divisor[None, :],
        mask=real,
    )
    tl.store(lse_ptr + part, maximum + tl.log2(divisor), mask=row < GROUP)


@triton.jit
def decode_join(
    partial_ptr,  # float32 [B * Hq, SPLITS, HEAD_DIM]
    lse_ptr,  # float32 [B * Hq, SPLITS], base 2
    out_ptr,  # [B * Hq, HEAD_DIM]
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """One query: the parts weighted by the mass of their keys; zeros where no part has any."""
    query = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dimension = tl.arange(0, BLOCK_D)
    lse = tl.load(lse_ptr + query * SPLITS + split)
    maximum = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(maximum == float("-inf"), 0.0, maximum))
    total = tl.sum(weights, 0)
    partial = tl.load(
        partial_ptr + (query * SPLITS + split)[:, None] * HEAD_DIM + dimension[None, :],
        mask=(dimension < HEAD_DIM)[None, :],
        other=0.0,
    )
    out = tl.sum(partial * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + query * HEAD_DIM + dimension,
        out.to(out_ptr.dtype.element_ty),
        mask=dimension < HEAD_DIM,
    )


@torch.library.custom_op("metamorph_kernels::decode_attention", mutates_args=())
def decode_attention_triton(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`decode_attention` of checked arguments; nothing is read on the host, so CUDA graphs work."""
    batch, query_heads, head_dim = q.shape
    _, slots, key_heads, _ = k_cache.shape
    group = query_heads // key_heads
    if q.stride(2) != 1:
        q = q.contiguous()
    block_n = BLOCK_N[q.element_size()]
    splits = _splits(batch * key_heads, slots, block_n, q.device)
    partial = torch.empty(
        (batch, query_heads, splits, head_dim), dtype=torch.float32, device=q.device
    )
    lse = torch.empty((batch, query_heads, splits), dtype=torch.float32, device=q.device)
    out = torch.empty((batch, query_heads, head_dim), dtype=q.dtype, device=q.device)
    block_d = triton.next_power_of_2(head_dim)
    with torch.cuda.device_of(q):
        decode_split[(batch * key_heads, splits)](
            q,
            describe_cache("k_cache", k_cache, block_n),
            describe_cache("v_cache", v_cache, block_n),
            lengths,
            partial,
            lse,
            key_heads,
            scale,
            q.stride(0),
            q.stride(1),
            GROUP=group,
            ROWS=_rows(group),
            SPLITS=splits,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
            HEAD_DIM=head_dim,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
        decode_join[(batch * query_heads,)](
            partial,
            lse,
            out,
            SPLITS=splits,
            BLOCK_D=block_d,
            HEAD_DIM=head_dim,
            num_warps=NUM_WARPS,
        )
    return out


@decode_attention_triton.register_fake
def _(q, k_cache, v_cache, lengths, scale):
    return q.new_empty(q.shape)


def _rows(group: int) -> int:
    return max(triton.next_power_of_2(group), SMALLEST_ROWS)


def _splits(rows: int, slots: int, block_n: int, device: torch.device) -> int:
    """Into how many parts the keys of a sequence are cut: a power of two, whatever the lengths."""
    wanted = triton.cdiv(PROGRAMS_PER_SM * multiprocessors(device), max(rows, 1))
    most = min(triton.cdiv(slots, block_n), MOST_SPLITS)
    return triton.next_power_of_2(max(1, min(wanted, most)))


def compilations() -> Iterator[Compilation]:
    """Both kernels at every head dim and dtype; the first with other groups and splits too."""
    for element, head_dim in product(("bf16", "fp16", "fp32"), (64, 80, 96, 128)):
        yield _split_compilation(element, head_dim, group=4, splits=4)
        yield Compilation(
            kernel=decode_join,
            configuration=f"{element} D={head_dim} {MOST_SPLITS} splits",
            arguments={
                "partial_ptr": "*fp32",
                "lse_ptr": "*fp32",
                "out_ptr": f"*{element}",
                "SPLITS": MOST_SPLITS,
                "BLOCK_D": triton.next_power_of_2(head_dim),
                "HEAD_DIM": head_dim,
            },
            num_warps=NUM_WARPS,
            num_stages=1,
            tensor_cores=False,
        )
    yield _split_compilation("bf16", 128, group=1, splits=MOST_SPLITS)
    yield _split_compilation("bf16", 128, group=24, splits=1)


def _split_compilation(element: str, head_dim: int, group: int, splits: int) -> Compilation:
    block_d = triton.next_power_of_2(head_dim)
    block_n = BLOCK_N[4 if element == "fp32" else 2]
    cache = descriptor_type(element, 1, 1, block_n, block_d)
    return Compilation(
        kernel=decode_split,
        configuration=f"{element} D={head_dim} group {group} {block_n} keys {splits} splits",
        arguments={
            "q_ptr": f"*{element}",
            "k_desc": cache,
            "v_desc": cache,
            "lengths_ptr": "*i32",
            "partial_ptr": "*fp32",
            "lse_ptr": "*fp32",
            "key_heads": "i32",
            "scale": "fp32",
            "q_stride_sequence": "i32",
            "q_stride_head": "i32",
            "GROUP": group,
            "ROWS": _rows(group),
            "SPLITS": splits,
            "BLOCK_N": block_n,
            "BLOCK_D": block_d,
            "HEAD_DIM": head_dim,
        },
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        tensor_cores=element != "fp32",
    )
