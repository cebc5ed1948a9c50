"""Attention of a packed row of documents, with one interval of keys per query."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph_kernels.arguments import check_heads, check_integers, check_shape, same_dtype
from metamorph_kernels.backends import resolve
from metamorph_kernels.intervals import Intervals

# Short documents of equal length share one call; above this a call of its own costs nothing more,
# and the masks of documents with spans stay small.
LONGEST_BATCHED_DOCUMENT = 512


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(scale q k^T) v over the keys [row_start[i], row_end[i]) of each query i.

    q [T, Hq, D]; k, v [T, Hkv, D] with Hq a multiple of Hkv; `intervals` from `key_intervals` for
    T tokens. Returns [T, Hq, D] in the dtype of q. `scale` is 1 / sqrt(D) unless given. float64,
    float32, bfloat16 or float16, the same for all three; follows autocast. Differentiable in q,
    k and v. The PyTorch path never builds a T x T mask; compiled, it specialises on the document
    lengths. MetaMorph (arXiv 2412.14164) is causal everywhere; prompt images may be bidirectional.

    Raises ValueError for shapes, dtypes or devices that do not fit, and for an unknown `impl`.
    """
    resolve("interval_attention", impl)
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

    lengths = intervals.document_lengths
    # One split for all documents: its backward is one cat, where slices would each pad to T.
    rows = [tensor.split(lengths) for tensor in (q, k, v)]
    reach = (intervals.row_end - intervals.row_start).split(lengths)
    outputs = [None] * len(lengths)
    for (length, masked), documents in _equal_documents(intervals):
        query, key, value = (
            torch.stack([split[document] for document in documents]).transpose(1, 2)
            for split in rows
        )  # [documents, heads, length, D]
        mask = None
        if masked:
            ends = torch.stack([reach[document] for document in documents])[:, None, :, None]
            mask = torch.arange(length, device=q.device) < ends  # [documents, 1, length, length]
        output = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=not masked, scale=scale, enable_gqa=True
        )
        for document, rows_out in zip(documents, output.transpose(1, 2).unbind(), strict=True):
            outputs[document] = rows_out
    return torch.cat(outputs)


def _equal_documents(intervals: Intervals) -> list[tuple[tuple[int, bool], list[int]]]:
    """Documents that one call can take: ((length, has spans), their numbers)."""
    groups: dict[tuple[int, bool, int], list[int]] = {}
    spans = intervals.bidirectional_spans
    span, last = 0, 0
    for document, length in enumerate(intervals.document_lengths):
        last += length
        first_span = span
        while span < len(spans) and spans[span][0] < last:
            span += 1
        alone = document if length > LONGEST_BATCHED_DOCUMENT else -1
        groups.setdefault((length, span > first_span, alone), []).append(document)
    return [(key[:2], documents) for key, documents in groups.items()]
