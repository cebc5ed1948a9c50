"""Is a result right? Exact attention in float64, errors beside it, and how large they may be."""

import math

import torch
from torch import Tensor

QUERIES_AT_ONCE = 512  # bounds the scores held in float64
ROWS_JUDGED_TOGETHER = 64
# Relative to the norm of the exact result, whatever plain PyTorch has: it could be wrong too.
# A gradient in float8 has two bits of mantissa, and passes two layers.
LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 2e-2, "float8": 1e-1, "float8 training": 1.5e-1}


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """norm(actual - exact) / norm(exact) of the worst run of rows [T, ..., D], of one head.

    Of runs, since one wrong row would drown in the norm of the whole; and not of single rows, since
    the exact gradient of a document's first query is zero. NaN for any NaN.
    """
    squares = torch.stack([actual.detach().double() - exact, exact.double()]).square().sum(-1)
    difference, size = torch.stack(
        [run.sum(1) for run in squares.split(ROWS_JUDGED_TOGETHER, dim=1)], dim=1
    )
    return (difference / size).sqrt().max().item()


def error_bound(plain_error: float, precision: str) -> float:
    """Twice the error of the same op in plain PyTorch of that precision, and a little noise."""
    return min(LARGEST_ERROR[precision], 2 * plain_error + 1e-5)


def exact_attention(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [S, Hkv, D]
    v: Tensor,
    out_gradient: Tensor,  # [T, Hq, D]
    row_start: Tensor,  # integers [T], never decreasing
    row_end: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, dq, dk and dv in float64 by the definition, some queries and all their keys at a time.

    Query i sees the keys [row_start[i], row_end[i]). It shares no code with what it judges.
    """
    q, k, v, out_gradient = (tensor.detach().double() for tensor in (q, k, v, out_gradient))
    out, q_gradient, k_gradient, v_gradient = map(torch.zeros_like, (q, q, k, v))
    starts, ends = row_start.tolist(), row_end.tolist()
    for first in range(0, len(q), QUERIES_AT_ONCE):
        last = min(first + QUERIES_AT_ONCE, len(q)) - 1
        rows, keys = slice(first, last + 1), slice(starts[first], ends[last])
        key = torch.arange(keys.start, keys.stop, device=q.device)
        visible = (row_start[rows, None] <= key) & (key < row_end[rows, None])
        leaves = [part.requires_grad_() for part in (q[rows], k[keys], v[keys])]
        part = _dense_attention(*leaves, visible)
        out[rows] = part.detach()
        gradients = torch.autograd.grad(part, leaves, out_gradient[rows])
        q_gradient[rows] = gradients[0]
        k_gradient[keys] += gradients[1]
        v_gradient[keys] += gradients[2]
    return out, q_gradient, k_gradient, v_gradient


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[2])
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v)
