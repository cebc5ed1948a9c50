"""Interval attention in Triton: tile sizes, launches, and the PyTorch operators around them."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.attention.backward import (
    attention_key_value_gradient,
    attention_query_gradient,
)
from metamorph_kernels.attention.forward import attention_forward
from metamorph_kernels.attention.launch_triton import (
    describe,
    packed_heads,
    programs,
    strides,
    work_lists,
)
from metamorph_kernels.descriptors import describable
from metamorph_kernels.intervals import Intervals


@dataclass(frozen=True)
class Tiles:
    """How one kernel cuts its work."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By (direction, padded head dim), never by the number of tokens. Three stages are the fewest that
# load a tile while the one before it is computed.
TILES = {
    ("forward", 64): Tiles(128, 128, num_warps=8, num_stages=3),
    ("forward", 128): Tiles(128, 128, num_warps=8, num_stages=3),
    ("query_gradient", 64): Tiles(128, 128, num_warps=8, num_stages=3),
    ("query_gradient", 128): Tiles(128, 64, num_warps=8, num_stages=3),
    ("key_value_gradient", 64): Tiles(64, 128, num_warps=8, num_stages=3),
    ("key_value_gradient", 128): Tiles(64, 128, num_warps=8, num_stages=3),
}
# float32 is for tests of exactness: IEEE products on the FMA units, which keep whole operands in
# registers.
FLOAT32_TILES = Tiles(16, 16, num_warps=8, num_stages=1)


def interval_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float, in_gluon: bool = False
) -> tuple[Tensor, Tensor]:
    """`interval_attention` of checked arguments: out [T, Hq, D] and lse float32 [Hq, T].

    `in_gluon`: by the warp-specialised kernels, in both directions.
    """
    attention = _attention if torch.compiler.is_compiling() else _Attention.apply
    return attention(
        q,
        k,
        v,
        intervals.row_start,
        intervals.row_end,
        intervals.col_start,
        intervals.col_end,
        intervals.causal,
        scale,
        in_gluon,
    )


@torch.library.custom_op("metamorph_kernels::interval_attention", mutates_args=())
def _attention(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hkv, D]
    v: Tensor,
    row_start: Tensor,  # int32 [T]
    row_end: Tensor,
    col_start: Tensor,
    col_end: Tensor,
    causal: bool,
    scale: float,
    in_gluon: bool,
) -> tuple[Tensor, Tensor]:
    tokens, query_heads, head_dim = q.shape
    out = torch.empty((tokens, query_heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((query_heads, tokens), dtype=torch.float32, device=q.device)
    q, k, v = map(describable, (q, k, v))
    if in_gluon:
        from metamorph_kernels.attention.interval_gluon import launch_forward

        with torch.cuda.device_of(q):
            launch_forward(q, k, v, out, lse, row_start, row_end, causal, scale)
        return out, lse
    tiles, layout = _layout("forward", q, k)
    packed = (layout["PACK"], tiles.block_m // layout["PACK"])
    with torch.cuda.device_of(q):
        attention_forward[programs(q, *packed)](
            q,
            k,
            v,
            describe(k, 1, tiles.block_n),
            describe(v, 1, tiles.block_n),
            describe(out, *packed),
            lse,
            row_start,
            row_end,
            *work_lists(q, *packed),
            tokens,
            *strides(q, k, v),
            k.shape[1],
            scale,
            CAUSAL=causal,
            **layout,
        )
    return out, lse


@_attention.register_fake
def _(q, k, v, *_):
    tokens, query_heads, _ = q.shape
    lse = q.new_empty((query_heads, tokens), dtype=torch.float32)
    return q.new_empty(q.shape), lse


@torch.library.custom_op("metamorph_kernels::interval_attention_backward", mutates_args=())
def _attention_backward(
    out_gradient: Tensor,  # [T, Hq, D]
    lse_gradient: Tensor,  # float32 [Hq, T]
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    row_start: Tensor,
    row_end: Tensor,
    col_start: Tensor,
    col_end: Tensor,
    causal: bool,
    scale: float,
    in_gluon: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, query_heads, _ = q.shape
    key_heads = k.shape[1]
    q_gradient, k_gradient, v_gradient = (
        torch.empty(tensor.shape, dtype=q.dtype, device=q.device) for tensor in (q, k, v)
    )
    # The second pass reads lse and delta by TMA, which wants rows at multiples of 16 bytes.
    statistic_stride = triton.cdiv(tokens, 4) * 4
    lse_log2, delta = torch.empty(
        (2, query_heads, statistic_stride), dtype=torch.float32, device=q.device
    )[:, :, :tokens]
    q, k, v, out_gradient = map(describable, (q, k, v, out_gradient))
    if in_gluon:
        from metamorph_kernels.attention.interval_gluon import launch_backward

        bounds = (row_start, row_end, col_start, col_end)
        with torch.cuda.device_of(q):
            launch_backward(
                q, k, v, out, out_gradient, lse, lse_gradient.contiguous(), lse_log2, delta,
                q_gradient, k_gradient, v_gradient, bounds, causal, scale,
            )  # fmt: skip
        return q_gradient, k_gradient, v_gradient
    with torch.cuda.device_of(q):
        tiles, layout = _layout("query_gradient", q, k)
        packed = (layout["PACK"], tiles.block_m // layout["PACK"])
        attention_query_gradient[programs(q, *packed)](
            q,
            k,
            v,
            out,
            out_gradient,
            describe(k, 1, tiles.block_n),
            describe(v, 1, tiles.block_n),
            describe(q_gradient, *packed),
            lse,
            lse_gradient.contiguous(),
            lse_log2,
            delta,
            row_start,
            row_end,
            *work_lists(q, *packed),
            tokens,
            statistic_stride,
            *strides(q, k, v, out_gradient),
            key_heads,
            scale,
            CAUSAL=causal,
            **layout,
        )
        tiles, layout = _layout("key_value_gradient", q, k)
        del layout["PACK"]
        attention_key_value_gradient[(key_heads * triton.cdiv(tokens, tiles.block_n),)](
            q,
            k,
            v,
            out_gradient,
            describe(q, 1, tiles.block_m),
            describe(out_gradient, 1, tiles.block_m),
            describe(k, 1, tiles.block_n),
            describe(v, 1, tiles.block_n),
            describe(k_gradient, 1, tiles.block_n),
            describe(v_gradient, 1, tiles.block_n),
            TensorDescriptor.from_tensor(lse_log2, [1, tiles.block_m]),
            TensorDescriptor.from_tensor(delta, [1, tiles.block_m]),
            lse_log2,
            delta,
            col_start,
            col_end,
            tokens,
            statistic_stride,
            *strides(q, k, v, out_gradient),
            key_heads,
            scale,
            CAUSAL=causal,
            **layout,
        )
    return q_gradient, k_gradient, v_gradient


@_attention_backward.register_fake
def _(out_gradient, lse_gradient, q, k, v, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _Attention(torch.autograd.Function):
    """The op as torch.func can transform it, which it cannot what `register_autograd` makes."""

    @staticmethod
    def forward(*arguments):
        return _attention(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.causal, ctx.scale, ctx.in_gluon = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, out_gradient, lse_gradient):
        q, k, v, row_start, row_end, col_start, col_end, out, lse = ctx.saved_tensors
        gradients = _attention_backward(
            out_gradient,
            lse_gradient,
            q,
            k,
            v,
            out,
            lse,
            row_start,
            row_end,
            col_start,
            col_end,
            ctx.causal,
            ctx.scale,
            ctx.in_gluon,
        )
        return *gradients, None, None, None, None, None, None, None


# The same for graphs of torch.compile, whose tracer knows the op and not the Function.
_attention.register_autograd(_Attention.backward, setup_context=_Attention.setup_context)


def _layout(direction: str, q: Tensor, k: Tensor) -> tuple[Tiles, dict[str, int]]:
    """The tiles of a kernel, and its constants and launch options."""
    block_d = triton.next_power_of_2(q.shape[2])
    tiles = FLOAT32_TILES if q.dtype == torch.float32 else TILES[direction, block_d]
    group = q.shape[1] // k.shape[1]
    return tiles, {
        "HEAD_DIM": q.shape[2],
        "GROUP": group,
        "PACK": packed_heads(group),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_D": block_d,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
