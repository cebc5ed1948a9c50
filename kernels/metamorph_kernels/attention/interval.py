"""Attention of a packed row of documents, with one interval of keys per query."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph_kernels.arguments import (
    check_heads,
    check_integers,
    check_shape,
    same_dtype,
    softmax_scale,
    without_autocast,
)
from metamorph_kernels.backends import resolve
from metamorph_kernels.intervals import Intervals
from metamorph_kernels.transforms import OnceOnly

TRITON_HEAD_DIMS = (64, 80, 96, 128)
GLUON_HEAD_DIMS = (64, 128)
# Short documents of equal length share one call; above this a call of its own costs nothing more,
# and the masks of documents with spans stay small.
LONGEST_BATCHED_DOCUMENT = 512
# On a CPU PyTorch's backward takes several times as long in 16 bits as in float32 at 64 tokens,
# about as long at 256, and less beyond (seen on one CPU with AMX).
LONGEST_IN_FLOAT32 = 256
WRITTEN_OUT = "use impl='torch' within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"


@overload
def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...


@overload
def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the keys [row_start[i], row_end[i]) of each query i.

    q [T, Hq, D]; k, v [T, Hkv, D] with Hq a multiple of Hkv; `intervals` from `key_intervals` or
    `intervals_from_rows` for T tokens. Returns [T, Hq, D] in the dtype of q. `scale` is 1 / sqrt(D)
    unless given. float64, float32, bfloat16 or float16, the same for all three; follows autocast.
    Differentiable in q, k and v. MetaMorph (arXiv 2412.14164) is causal everywhere; prompt images
    may be bidirectional.

    With `return_lse` the result is (out, lse): lse [Hq, T] = log(sum(exp(scale q k^T))), natural,
    over the same keys; float32, or float64 where q is; differentiable too.

    The PyTorch path never builds a T x T mask; compiled, it specialises on the document lengths.
    Triton takes head dimensions 64, 80, 96 and 128, and not float64. A number that is not finite
    reaches only the documents that hold it; in Triton, only the rows that see it. `impl="gluon"` is
    warp-specialised, for bfloat16 and float16 and head dimensions 64 and 128; until a GPU has shown
    it to be right and faster "auto" does not take it.

    Raises ValueError for shapes, dtypes or devices that do not fit, for a scale that is not
    positive, and for an `impl` that cannot run this call.
    """
    q, k, v = checked_inputs(q, k, v, intervals)
    scale = softmax_scale(scale, q.shape[-1])
    backend = resolve("interval_attention", impl, q, _triton_limit(q), gluon_limit=_gluon_limit(q))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if backend == "torch":
            return _interval_attention_torch(q, k, v, intervals, scale, return_lse)
        from metamorph_kernels.attention.interval_triton import interval_attention_triton

        in_gluon = backend == "gluon"
        out, lse = interval_attention_triton(q, k, v, intervals, scale, in_gluon)
        return (out, lse) if return_lse else (out,)

    if backend == "torch" and attention_is_written_out():
        results = attention(q, k, v)
    else:
        results = OnceOnly("interval_attention", WRITTEN_OUT)(attention, q, k, v)
    out, *lse = results
    return (out, lse[0]) if return_lse else out


def checked_inputs(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in one dtype, as autocast says; ValueError for what does not fit together."""
    q, k, v = same_dtype(q=q, k=k, v=v)
    check_shape("q", q, "T, Hq, D", None, None, None)
    tokens, _, head_dim = q.shape
    check_shape("k", k, "T, Hkv, D", tokens, None, head_dim)
    check_shape("v", v, "T, Hkv, D", *k.shape)
    check_heads(q, k)
    if not isinstance(intervals, Intervals):
        raise ValueError(f"intervals: expected Intervals, got {type(intervals).__name__}")
    check_integers("intervals", intervals.row_start, (torch.int32,), q.device)
    check_shape("intervals", intervals.row_start, "T", tokens)
    return q, k, v


def head_dim_limit(head_dim: int) -> str | None:
    """Why the Triton kernels cannot take this head dimension, or None where they can."""
    if head_dim in TRITON_HEAD_DIMS:
        return None
    listed = ", ".join(map(str, TRITON_HEAD_DIMS[:-1]))
    return f"head dimensions {listed} and {TRITON_HEAD_DIMS[-1]} only, got {head_dim}"


def attention_is_written_out() -> bool:
    """Whether PyTorch computes attention by plain products and softmax: no kernel of its own may.

    A graph of torch.compile cannot ask, and has no gates that would depend on it.
    """
    if torch.compiler.is_compiling():
        return True
    allowed = torch.backends.cuda
    kernels = (allowed.flash_sdp_enabled, allowed.mem_efficient_sdp_enabled)
    return not any(is_allowed() for is_allowed in (*kernels, allowed.cudnn_sdp_enabled))


def map_documents(
    attend: Callable, q: Tensor, k: Tensor, v: Tensor, intervals: Intervals
) -> list[Tensor]:
    """Call `attend` for all documents alike at once, and put what it returns back into one row.

    attend(query, key, value, visible) takes [documents, heads, length, D] and bool
    [documents, 1, length, length], or None where the documents are plainly causal; it returns
    tensors [documents, heads, length, ...], which come back as [T, heads, ...].
    """
    runs, groups = _alike(intervals)
    # One split for all documents: its backward is one cat, where slices would each pad to T.
    rows = [tensor.split(runs) for tensor in (q, k, v)]
    token = torch.arange(len(q), dtype=torch.int32, device=q.device)
    bounds = [tensor.split(runs) for tensor in (intervals.row_start, intervals.row_end, token)]
    results = [None] * len(runs)
    for (length, plain, _), members in groups.items():
        inputs = [_documents(split, members, length).transpose(1, 2) for split in rows]
        visible = None
        if not plain:
            start, end, key = (_documents(split, members, length) for split in bounds)
            key = key[:, None]
            visible = ((start[..., None] <= key) & (key < end[..., None]))[:, None]
        outputs = attend(*inputs, visible)
        tokens = [runs[run] for run in members]
        split = [output.transpose(1, 2).flatten(0, 1).split(tokens) for output in outputs]
        for run, *parts in zip(members, *split, strict=True):
            results[run] = parts
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


def _documents(runs: Sequence[Tensor], members: list[int], length: int) -> Tensor:
    """[documents, length, ...] of a group from the runs [tokens, ...] of a row."""
    return torch.cat([runs[run] for run in members]).unflatten(0, (-1, length))


def _alike(intervals: Intervals) -> tuple[list[int], dict[tuple[int, bool, int], list[int]]]:
    """Tokens of each run of neighbouring documents alike, and the runs that one call can take.

    Alike are short documents of the same length, all or none of them plainly causal.
    """
    runs, groups = [], {}
    previous = None
    documents = zip(intervals.document_lengths, intervals.plain_documents, strict=True)
    for document, (length, plain) in enumerate(documents):
        kind = (length, plain, document if length > LONGEST_BATCHED_DOCUMENT else -1)
        if kind != previous:
            groups.setdefault(kind, []).append(len(runs))
            runs.append(0)
            previous = kind
        runs[-1] += length
    return runs, groups


def _triton_limit(q: Tensor) -> str | None:
    if q.dtype == torch.float64:
        return "float64 runs in PyTorch only"
    return head_dim_limit(q.shape[-1])


def _gluon_limit(q: Tensor) -> str | None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"bfloat16 and float16 only, got {str(q.dtype).removeprefix('torch.')}"
    if q.shape[-1] not in GLUON_HEAD_DIMS:
        return f"head dimensions 64 and 128 only, got {q.shape[-1]}"
    return None


def _interval_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float, return_lse: bool
) -> tuple[Tensor, ...]:
    def attend(query, key, value, visible):
        out = _attend(query, key, value, visible, scale)
        return (out, _log_sum_exp(query, key, visible, scale)) if return_lse else (out,)

    out, *lse = map_documents(attend, q, k, v, intervals)
    return (out, *(part.t().contiguous() for part in lse))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float
) -> Tensor:
    """[documents, Hq, length, D] of the same dtype as the query."""
    dtype = query.dtype
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if query.is_cpu and learns and query.shape[2] <= LONGEST_IN_FLOAT32:
        exact = torch.promote_types(dtype, torch.float32)
        query, key, value = query.to(exact), key.to(exact), value.to(exact)
    with without_autocast(query):
        out = F.scaled_dot_product_attention(
            query, key, value, visible, is_causal=visible is None, scale=scale, enable_gqa=True
        )
    return out.to(dtype)


def _log_sum_exp(query: Tensor, key: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """[documents, Hq, length] of scores that are held whole, a document at a time or a group."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    if visible is None:
        length = query.shape[2]
        visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    with without_autocast(query):
        grouped = query.to(dtype).unflatten(1, (key.shape[1], -1))  # [.., Hkv, group, length, D]
        scores = scale * (grouped @ key.to(dtype)[:, :, None].mT)
    return scores.flatten(1, 2).masked_fill(~visible, -math.inf).logsumexp(-1)
