"""What other packages compute attention of packed rows with, each as its documentation has it."""

import importlib
from collections.abc import Callable
from functools import partial

import torch

from bench.harness.documents import SyntheticRow
from bench.ops.torch_peers import Attend, Leaves, repeated

Range = tuple[int, int]
Slice = tuple[Range, Range, int]  # queries, keys, and which of them see each other
FULL, CAUSAL, INVERSE_CAUSAL = 0, 1, 2  # MagiAttention's types; it has a fourth, their product


def flash(module: str) -> Callable[[SyntheticRow, Leaves], Attend]:
    """FlashAttention 2 to 4: one interface."""

    def prepare(row: SyntheticRow, leaves: Leaves) -> Attend:
        function = importlib.import_module(module).flash_attn_varlen_func
        bounds, longest = row.bounds(leaves[0].device), max(row.lengths)

        def attend(q, k, v):
            out = function(
                q,
                k,
                v,
                cu_seqlens_q=bounds,
                cu_seqlens_k=bounds,
                max_seqlen_q=longest,
                max_seqlen_k=longest,
                causal=True,
            )
            return out[0] if isinstance(out, tuple) else out  # some versions add the lse

        return attend

    return prepare


def xformers(row: SyntheticRow, leaves: Leaves) -> Attend:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    bias = BlockDiagonalCausalMask.from_seqlens(list(row.lengths))

    def attend(q, k, v):
        k, v = repeated(q, k, v)  # its grouped form has no backward
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias)[0]

    return attend


def cudnn_by_document(row: SyntheticRow, leaves: Leaves) -> Attend:
    """cuDNN's flex attention of sequences: a query sees the keys [0, end) of its document."""
    from cudnn.flex_attention import create_mask_plan, flex_attn_func

    device, longest = leaves[0].device, max(row.lengths)
    intervals, bounds = row.intervals(device), row.bounds(device)
    ends = intervals.row_end - intervals.row_start
    plan = create_mask_plan(
        ends.view(1, 1, -1),  # a mask for all heads, one endpoint
        *leaves,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        build_backward=True,
    )
    return partial(flex_attn_func, mask_plan=plan)


def cudnn_by_row(row: SyntheticRow, leaves: Leaves) -> Attend:
    """The same of one sequence: a query sees [0, 0) and [start, end)."""
    from cudnn.flex_attention import create_mask_plan, flex_attn_func

    intervals = row.intervals(leaves[0].device)
    start, end = intervals.row_start, intervals.row_end
    endpoints = torch.stack([torch.zeros_like(start), start, end]).unsqueeze(0)  # [1, 3, T]
    whole = [leaf.unsqueeze(0) for leaf in leaves]
    plan = create_mask_plan(endpoints, *whole, build_backward=True)
    return lambda *qkv: flex_attn_func(*(x.unsqueeze(0) for x in qkv), mask_plan=plan).squeeze(0)


def magi(
    row: SyntheticRow, leaves: Leaves, slices: Callable[[SyntheticRow], list[Slice]], apart: bool
) -> Attend:
    """MagiAttention's FFA; `apart` where no two slices share a query, so that none are added up."""
    from magi_attention.api import flex_flash_attn_func

    queries, keys, types = (
        torch.tensor(part, dtype=torch.int32, device=leaves[0].device)
        for part in zip(*slices(row), strict=True)
    )

    def attend(q, k, v):
        out, _ = flex_flash_attn_func(
            q,
            k,
            v,
            q_ranges=queries,
            k_ranges=keys,
            attn_type_map=types,
            disable_fwd_atomic_reduction=apart,
        )
        return out

    return attend


def row_slices(row: SyntheticRow) -> list[Slice]:
    """The mask without a query in two slices: runs of text, causal, and spans, which see all.

    The last query of a causal slice sees its last key, so keys go from the document's start to
    where the run ends.
    """
    slices = []
    for first, last, spans in row.documents:
        text = first
        for start, end in spans:
            if text < start:
                slices.append(((text, start), (first, start), CAUSAL))
            slices.append(((start, end), (first, end), FULL))
            text = end
        if text < last:
            slices.append(((text, last), (first, last), CAUSAL))
    return slices


def corner_slices(row: SyntheticRow) -> list[Slice]:
    """The mask in the fewest slices: causal documents, and what spans see ahead of the diagonal.

    The first query of an inverse-causal slice sees all its keys, so the corner above the diagonal
    of a span [start, end) is that of its queries but the last and its keys but the first.
    """
    slices = []
    for first, last, spans in row.documents:
        slices.append(((first, last), (first, last), CAUSAL))
        slices += [
            ((start, end - 1), (start + 1, end), INVERSE_CAUSAL)
            for start, end in spans
            if start + 1 < end
        ]
    return slices
