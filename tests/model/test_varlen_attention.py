"""PyTorch's own `varlen_attn`, of which only the kernels are stand-ins: packed rows as ours."""

import pytest
import torch
from torch import nn
from torch.library import _scoped_library

from metamorph.model.fused_parts import varlen_row
from metamorph.training.parallel import recompute
from metamorph_kernels import interval_attention, key_intervals

LENGTHS = (5, 1, 9, 2)
FORWARDS: list[torch.Size] = []  # shapes of the queries of each call of the kernel


def softmax_of_documents(q, k, bounds):
    """Weights [Hq, T, T] of causal attention, by its definition; q and k [T, Hq, D]."""
    document = torch.bucketize(torch.arange(len(q)), bounds, right=True)
    visible = (document[:, None] == document).tril()
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1)


def for_each_query_head(q, *tensors):
    return [x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in tensors]


def forward(
    q, k, v, bounds, other_bounds, longest, other_longest, dropout_p, is_causal, return_debug_mask,
    scale=None, window_size_left=None, window_size_right=None, **_,
):  # fmt: skip
    assert is_causal and dropout_p == 0 and not return_debug_mask and scale is None
    assert (window_size_left, window_size_right) == (-1, 0)
    FORWARDS.append(q.shape)
    assert bounds.dtype == torch.int32 and torch.equal(bounds, other_bounds)
    assert longest == other_longest == bounds.diff().max()
    k, v = for_each_query_head(q, k, v)
    out = torch.einsum("hqk,khd->qhd", softmax_of_documents(q, k, bounds), v)
    empty, lse = torch.empty(0), torch.zeros(q.shape[1], len(q))
    return out, lse, torch.empty(0, dtype=torch.uint64), empty, empty


def backward(
    gradient, q, k, v, out, lse, bounds, other_bounds, longest, other_longest, dropout_p, is_causal,
    rng_state, unused, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    assert is_causal and dropout_p == 0 and (window_size_left, window_size_right) == (-1, 0)
    key_heads = k.shape[1]
    k, v = for_each_query_head(q, k, v)
    weights = softmax_of_documents(q, k, bounds)
    dv = torch.einsum("hqk,qhd->khd", weights, gradient)
    dweights = torch.einsum("qhd,khd->hqk", gradient, v)
    dscores = (
        weights * (dweights - (dweights * weights).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    )
    dq = torch.einsum("hqk,khd->qhd", dscores, k)
    dk = torch.einsum("hqk,qhd->khd", dscores, q)
    return dq, *(x.unflatten(1, (key_heads, -1)).sum(2) for x in (dk, dv))


@pytest.fixture
def cpu_kernels():
    with _scoped_library("aten", "IMPL", "CPU") as library:
        library.impl("_flash_attention_forward", forward)
        library.impl("_flash_attention_backward", backward)
        yield


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_outputs_and_gradients_are_those_of_interval_attention(cpu_kernels, key_heads):
    intervals = key_intervals(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(sum(LENGTHS), heads, 8, generator=generator, dtype=torch.float64)
        for heads in (4, key_heads, key_heads)
    ]
    gradient = torch.randn(sum(LENGTHS), 4, 8, generator=generator, dtype=torch.float64)
    results = []
    for attend in (
        lambda q, k, v: varlen_row(intervals)(0, q, k, v),
        lambda q, k, v: interval_attention(q, k, v, intervals, impl="torch"),
    ):
        mine = [leaf.clone().requires_grad_() for leaf in leaves]
        out = attend(*mine)
        results.append((out, *torch.autograd.grad(out, mine, gradient)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("mode", "forwards"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_checkpointing_keeps_what_it_computed(cpu_kernels, mode, forwards):
    class Block(nn.Module):
        def forward(self, x):
            return varlen_row(key_intervals([3, 4]))(0, x, 2 * x, 3 * x)

    block = Block()
    recompute(block, mode, False)
    FORWARDS.clear()
    block(torch.ones(7, 2, 4, requires_grad=True)).sum().backward()
    assert len(FORWARDS) == forwards
