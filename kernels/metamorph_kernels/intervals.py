"""The attention mask of a packed row as one interval of keys per query."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Intervals:
    """What each of T packed tokens may see, and who sees it; made by `key_intervals`.

    Query i sees keys [row_start[i], row_end[i]); key j is seen by queries
    [col_start[j], col_end[j]). All four are int32 [T] and never decrease, so the first and last
    row of a tile bound the whole tile. The host tuples say the same without touching the device.
    """

    row_start: Tensor
    row_end: Tensor
    col_start: Tensor
    col_end: Tensor
    document_lengths: tuple[int, ...]
    bidirectional_spans: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str) -> "Intervals":
        """The same intervals with the tensors on `device`."""
        return replace(
            self,
            row_start=self.row_start.to(device),
            row_end=self.row_end.to(device),
            col_start=self.col_start.to(device),
            col_end=self.col_end.to(device),
        )


def key_intervals(
    document_lengths: Iterable[int],
    bidirectional_spans: Iterable[tuple[int, int]] = (),
    device: torch.device | str = "cpu",
) -> Intervals:
    """Intervals of documents packed one after another into a row of T = sum(lengths) tokens.

    Attention is causal inside a document (MetaMorph, arXiv 2412.14164, section 2). Tokens of a
    bidirectional span, `(start, end)` in packed coordinates with the end exclusive, see each
    other too: row_end = max(i + 1, end of the span that holds i). Regression targets must not
    lie in such a span, or the answer leaks.

    Raises ValueError for lengths that are not positive integers, and for spans that are empty,
    unsorted, overlapping, or cross a document.
    """
    lengths = _checked_lengths(document_lengths)
    spans = _checked_spans(bidirectional_spans, lengths)

    lengths_host = torch.tensor(lengths)
    document_ends = lengths_host.cumsum(0)
    row_start = torch.repeat_interleave(document_ends - lengths_host, lengths_host)  # [T]
    col_end = torch.repeat_interleave(document_ends, lengths_host)
    col_start = torch.arange(len(row_start))
    row_end = col_start + 1
    if spans:
        span_starts, span_ends = torch.tensor(list(zip(*spans, strict=True)))  # [2, spans]
        span = torch.searchsorted(span_starts, col_start, right=True) - 1  # -1 before the first
        inside = (span >= 0) & (col_start < span_ends[span])
        row_end = torch.where(inside, span_ends[span], row_end)
        col_start = torch.where(inside, span_starts[span], col_start)
    return Intervals(
        row_start=row_start.to(device, torch.int32),
        row_end=row_end.to(device, torch.int32),
        col_start=col_start.to(device, torch.int32),
        col_end=col_end.to(device, torch.int32),
        document_lengths=lengths,
        bidirectional_spans=spans,
    )


def _checked_lengths(document_lengths: Iterable[int]) -> tuple[int, ...]:
    lengths = tuple(_integer("document_lengths", length) for length in document_lengths)
    if not lengths:
        raise ValueError("document_lengths: expected at least one document, got none")
    for index, length in enumerate(lengths):
        if length <= 0:
            raise ValueError(
                f"document_lengths: expected positive lengths, got {length} at {index}"
            )
    if sum(lengths) >= 2**31:
        raise ValueError(f"document_lengths: expected fewer than 2**31 tokens, got {sum(lengths)}")
    return lengths


def _checked_spans(
    bidirectional_spans: Iterable[tuple[int, int]], lengths: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    spans = []
    document, first, last = 0, 0, lengths[0]  # the document whose tokens are [first, last)
    previous_end = 0
    for span in bidirectional_spans:
        if not isinstance(span, (tuple, list)) or len(span) != 2:
            raise ValueError(f"bidirectional_spans: expected pairs (start, end), got {span!r}")
        start, end = (_integer("bidirectional_spans", bound) for bound in span)
        name = f"bidirectional_spans: span ({start}, {end})"
        if start >= end:
            raise ValueError(f"{name} is empty; the end is exclusive")
        if start < previous_end:
            raise ValueError(
                f"{name} starts before {previous_end}, where the one before it ends; "
                "expected sorted spans that do not overlap"
            )
        if end > sum(lengths):
            raise ValueError(f"{name} ends after the last of {sum(lengths)} tokens")
        while start >= last:
            document += 1
            first, last = last, last + lengths[document]
        if end > last:
            raise ValueError(f"{name} crosses the end of document {document}, [{first}, {last})")
        spans.append((start, end))
        previous_end = end
    return tuple(spans)


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{name}: expected integers, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected integers, got {value!r}") from None
