"""Queries, keys and values in float8 for attention, in Triton: two passes over all three.

Per-head absmax quantisation, the transpose of the values fused with it.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.attention.launch_triton import strides
from metamorph_kernels.compilation import Compilation
from metamorph_kernels.float8 import ALIGNMENT, E4M3, padded
from metamorph_kernels.rows.quantise_triton import CHUNK, magnitude, scale_of, to_float8

MAXIMA_ROWS, MAXIMA_STEPS = 64, 8  # tokens that a program reads at once, and how often
ROWS = 64  # tokens that are rounded, and of values turned, at once
NUM_WARPS = 4
LARGEST = tl.constexpr(torch.finfo(E4M3).max)
INFINITY = tl.constexpr(0x7F800000)  # the bits of float32 infinity


@triton.jit
def head_of(
    q_ptr, k_ptr, v_ptr, q_stride_token, q_stride_head, k_stride_token, k_stride_head,
    v_stride_token, v_stride_head, query_heads, key_heads, head,
):  # fmt: skip
    """Pointer to token 0 of a head, counted over q, k and v together, and the stride of tokens."""
    if head < query_heads:
        x_ptr = q_ptr + head.to(tl.int64) * q_stride_head
        stride = q_stride_token
    elif head < query_heads + key_heads:
        x_ptr = k_ptr + (head - query_heads).to(tl.int64) * k_stride_head
        stride = k_stride_token
    else:
        x_ptr = v_ptr + (head - query_heads - key_heads).to(tl.int64) * v_stride_head
        stride = v_stride_token
    return x_ptr, stride


@triton.jit
def load_block(x_ptr, stride, token, tokens, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """float32 [tokens of the block, BLOCK_D]; zeros past the last token and past HEAD_DIM."""
    dimension = tl.arange(0, BLOCK_D)
    mask = (token < tokens)[:, None] & (dimension < HEAD_DIM)[None, :]
    place = token.to(tl.int64)[:, None] * stride + dimension[None, :]
    return tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def float8_head_maxima(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    largest_ptr,  # int32 [Hq + 2 Hkv], zeros: bits of the largest finite magnitudes
    tokens,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    query_heads,
    key_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A maximum is the same in any order, so these atomics are deterministic."""
    head = tl.program_id(1)
    x_ptr, stride = head_of(
        q_ptr, k_ptr, v_ptr, q_stride_token, q_stride_head, k_stride_token, k_stride_head,
        v_stride_token, v_stride_head, query_heads, key_heads, head,
    )  # fmt: skip
    largest = tl.zeros([ROWS, BLOCK_D], tl.int32)
    for step in range(STEPS):
        token = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        bits = magnitude(load_block(x_ptr, stride, token, tokens, HEAD_DIM, BLOCK_D))
        largest = tl.maximum(largest, tl.where(bits < INFINITY, bits, 0))
    tl.atomic_max(largest_ptr + head, tl.max(tl.max(largest, 1), 0), sem="relaxed")


@triton.jit(do_not_specialize=["tokens", "chunks"])
def float8_heads(
    q_ptr,  # [T, Hq, D]
    k_ptr,  # [T, Hkv, D]
    v_ptr,
    largest_ptr,  # int32 [Hq + 2 Hkv]
    rows_ptr,  # float8 [Hq + Hkv, T, D]: q and k
    columns_ptr,  # float8 [Hkv, D, chunks * CHUNK]: v turned
    scales_ptr,  # float32 [Hq + 2 Hkv]
    tokens,
    chunks,
    q_stride_token,
    q_stride_head,
    k_stride_token,
    k_stride_head,
    v_stride_token,
    v_stride_head,
    query_heads,
    key_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS tokens of one head; what is not finite becomes NaN."""
    head = tl.program_id(1)
    x_ptr, stride = head_of(
        q_ptr, k_ptr, v_ptr, q_stride_token, q_stride_head, k_stride_token, k_stride_head,
        v_stride_token, v_stride_head, query_heads, key_heads, head,
    )  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dimension = tl.arange(0, BLOCK_D)
    x = load_block(x_ptr, stride, token, tokens, HEAD_DIM, BLOCK_D)
    scale = scale_of(tl.load(largest_ptr + head), LARGEST)
    if tl.program_id(0) == 0:
        tl.store(scales_ptr + head, scale)
    x = tl.where(magnitude(x) < INFINITY, x, float("nan"))
    values = to_float8(x, scale, rows_ptr.dtype.element_ty, LARGEST)
    rows = query_heads + key_heads
    real = dimension < HEAD_DIM
    if head < rows:
        row = head.to(tl.int64) * tokens + token
        tl.store(
            rows_ptr + row[:, None] * HEAD_DIM + dimension[None, :],
            values,
            mask=(token < tokens)[:, None] & real[None, :],
        )
    else:
        column = (head - rows).to(tl.int64) * HEAD_DIM + dimension
        size = chunks * CHUNK  # a multiple of CHUNK, whatever it is: stores are of whole chunks
        tl.store(
            columns_ptr + column[:, None] * size + token[None, :],
            values.T,
            mask=real[:, None] & (token < size)[None, :],
        )


def quantise_qkv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """q [T, Hq, D] as float8 [Hq, T, D], k as [Hkv, T, D], v as [Hkv, D, T], and their scales.

    v comes in rows of whole 16 bytes. Numbers and scales are those of `fp8.quantise_heads`.
    """
    tokens, query_heads, head_dim = q.shape
    key_heads = k.shape[1]
    heads = query_heads + 2 * key_heads
    largest = torch.zeros(heads, dtype=torch.int32, device=q.device)
    scales = torch.empty(heads, dtype=torch.float32, device=q.device)
    rows = torch.empty((query_heads + key_heads, tokens, head_dim), dtype=E4M3, device=q.device)
    columns = torch.empty((key_heads, head_dim, padded(tokens)), dtype=E4M3, device=q.device)
    sizes = (query_heads, key_heads)
    layout = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "num_warps": NUM_WARPS,
    }
    with torch.cuda.device_of(q):
        float8_head_maxima[(triton.cdiv(tokens, MAXIMA_ROWS * MAXIMA_STEPS), heads)](
            *(q, k, v, largest, tokens, *strides(q, k, v), *sizes),
            ROWS=MAXIMA_ROWS,
            STEPS=MAXIMA_STEPS,
            **layout,
        )
        float8_heads[(triton.cdiv(columns.shape[2], ROWS), heads)](
            *(q, k, v, largest, rows, columns, scales, tokens, columns.shape[2] // ALIGNMENT),
            *strides(q, k, v),
            *sizes,
            ROWS=ROWS,
            **layout,
        )
    q8, k8 = rows.split((query_heads, key_heads))
    return q8, k8, columns[:, :, :tokens], *scales.split((query_heads, key_heads, key_heads))


def compilations() -> Iterator[Compilation]:
    """Both kernels at every head dimension and dtype."""
    for element in ("bf16", "fp16", "fp32"):
        for head_dim in (64, 80, 96, 128):
            block_d = triton.next_power_of_2(head_dim)
            for kernel, rows in ((float8_head_maxima, MAXIMA_ROWS), (float8_heads, ROWS)):
                constants = {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "ROWS": rows}
                constants["STEPS"] = MAXIMA_STEPS
                pointers = {f"{name}_ptr": f"*{element}" for name in "qkv"}
                pointers |= {"largest_ptr": "*i32", "scales_ptr": "*fp32"}
                pointers |= dict.fromkeys(("rows_ptr", "columns_ptr"), "*fp8e4nv")
                sizes = dict.fromkeys(("tokens", "chunks", "query_heads", "key_heads"), "i32")
                known = constants | pointers | sizes
                yield Compilation(
                    kernel=kernel,
                    configuration=f"{element} D={head_dim}",
                    arguments={name: known.get(name, "i32:16") for name in kernel.arg_names},
                    num_warps=NUM_WARPS,
                    num_stages=1,
                    tensor_cores=False,
                )
