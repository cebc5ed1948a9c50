"""What torch itself computes attention of packed rows with."""

import inspect
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bench.harness.documents import SyntheticRow

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Leaves = tuple[Tensor, Tensor, Tensor]

# Whole or not at all: flex_attention that is not compiled holds all scores. Each shape by itself.
_compile = cache(partial(torch.compile, fullgraph=True, dynamic=False))


def _compiled(function: Callable, device: torch.device) -> Callable:
    # On a CPU this is a rehearsal, and compiling would take most of it.
    return _compile(function) if device.type == "cuda" else function


def flex(row: SyntheticRow, leaves: Leaves, backend: str = "AUTO") -> Attend:
    """`backend` is of FlexAttention's `kernel_options`: AUTO is Triton, FLASH FlashAttention 4."""
    device = leaves[0].device
    mask = _block_mask(row, device)
    attention = _compiled(flex_attention, device)

    def attend(q, k, v):
        return tokens_first(
            attention(
                *heads_first(q, k, v),
                block_mask=mask,
                enable_gqa=True,
                kernel_options={"BACKEND": backend},
            )
        )

    return attend


def _block_mask(row: SyntheticRow, device: torch.device) -> BlockMask:
    """In the cheapest form we know: two loads for a query, and never a mask of T x T."""
    intervals, tokens = row.intervals(device), row.tokens
    row_start, row_end = intervals.row_start, intervals.row_end

    def visible(batch, head, query, key):
        return (row_start[query] <= key) & (key < row_end[query])

    create = _compiled(create_block_mask, device)
    return create(visible, None, None, tokens, tokens, device=device)


def dense_mask(row: SyntheticRow, leaves: Leaves) -> Attend:
    intervals = row.intervals(leaves[0].device)
    key = torch.arange(row.tokens, device=leaves[0].device)
    mask = (intervals.row_start[:, None] <= key) & (key < intervals.row_end[:, None])

    def attend(q, k, v):
        # Repeated keys, as transformers does: grouped queries and a mask leave only the slow path.
        return tokens_first(
            F.scaled_dot_product_attention(*heads_first(q, *repeated(q, k, v)), mask)
        )

    return attend


def cudnn(row: SyntheticRow, leaves: Leaves) -> Attend:
    """PyTorch's own cuDNN backend, which knows a whole causal row and no documents."""

    def attend(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return tokens_first(
                F.scaled_dot_product_attention(
                    *heads_first(q, k, v), is_causal=True, enable_gqa=True
                )
            )

    return attend


def varlen(row: SyntheticRow, leaves: Leaves) -> Attend:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = row.bounds(leaves[0].device), max(row.lengths)
    # torch 2.11 takes grouped queries as they are, later versions want to be told.
    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
    options = {"enable_gqa": True} if grouped else {}
    return lambda q, k, v: varlen_attn(
        q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0), **options
    )


def heads_first(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(0, 1)[None] for tensor in tensors]  # [1, H, T, D]


def tokens_first(out: Tensor) -> Tensor:
    return out[0].transpose(0, 1)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    return [tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v)]
