"""The attention mask of a packed row as one interval of keys per query."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metamorph_kernels.arguments import check_integers, check_shape
from metamorph_kernels.transfer import send


@dataclass(frozen=True, eq=False)
class Intervals:
    """What each of T packed tokens may see, and who sees it.

    Made by `key_intervals` from lists, or by `intervals_from_rows` from any mask of this form.
    Query i sees keys [row_start[i], row_end[i]); key j is seen by queries
    [col_start[j], col_end[j]). All four are int32 [T] and never decrease, so the first and last
    row of a tile bound the whole tile. `causal` says that every row_end is i + 1 and with it every
    col_start j, so that neither need be read.

    The host tuples serve the PyTorch path: no interval crosses the documents of
    `document_lengths`, and `plain_documents` are causal from their first token on.
    """

    row_start: Tensor
    row_end: Tensor
    col_start: Tensor
    col_end: Tensor
    causal: bool
    document_lengths: tuple[int, ...]
    plain_documents: tuple[bool, ...]

    def to(self, device: torch.device | str) -> "Intervals":
        """The same intervals with the tensors on `device`."""
        return replace(
            self,
            row_start=send(self.row_start, device),
            row_end=send(self.row_end, device),
            col_start=send(self.col_start, device),
            col_end=send(self.col_end, device),
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
    spans = checked_spans(bidirectional_spans, lengths, "document")

    lengths_host = torch.tensor(lengths)
    document_ends = lengths_host.cumsum(0)
    row_start = torch.repeat_interleave(document_ends - lengths_host, lengths_host)  # [T]
    col_end = torch.repeat_interleave(document_ends, lengths_host)
    col_start = torch.arange(len(row_start))
    row_end = col_start + 1
    if spans:
        inside, span_start, span_end = enclosing_spans(spans, len(row_start))
        row_end = torch.where(inside, span_end, row_end)
        col_start = torch.where(inside, span_start, col_start)
    return Intervals(
        row_start=send(row_start.int(), device),
        row_end=send(row_end.int(), device),
        col_start=send(col_start.int(), device),
        col_end=send(col_end.int(), device),
        causal=_causal(row_end),
        document_lengths=lengths,
        plain_documents=_plain_documents(lengths_host, row_start, row_end),
    )


def intervals_from_rows(row_start: Tensor, row_end: Tensor) -> Intervals:
    """Intervals of any mask in which query i sees the keys [row_start[i], row_end[i]).

    row_start and row_end are int32 or int64 [T] on one device, and neither may decrease: packed
    documents, prefixes, bidirectional images, sliding windows. A query need not see itself, and a
    key that nobody sees gets an empty interval of queries. The bounds are checked and searched for
    documents on the host, so this waits for the device.

    Raises ValueError for tensors that do not fit, and, naming the first such row, for an interval
    that is empty or leaves [0, T), and for a bound below that of the row before.
    """
    check_integers("row_start", row_start, (torch.int32, torch.int64))
    device = row_start.device
    check_integers("row_end", row_end, (torch.int32, torch.int64), device)
    check_shape("row_start", row_start, "T", None)
    check_shape("row_end", row_end, "T", len(row_start))
    tokens = len(row_start)
    if tokens == 0:
        raise ValueError("row_start: expected at least one row, got none")
    start, end = row_start.cpu().long(), row_end.cpu().long()
    _check_rows(start, end)

    token = torch.arange(tokens)
    cut = torch.ones(tokens + 1, dtype=torch.bool)  # does a document begin or the row end here?
    cut[1:-1] = (end[:-1] <= token[1:]) & (start[1:] >= token[1:])
    lengths = cut.nonzero()[:, 0].diff()
    row_start, row_end = (bound.to(torch.int32, copy=True) for bound in (row_start, row_end))
    key = torch.arange(tokens, dtype=torch.int32, device=device)
    return Intervals(
        row_start=row_start,
        row_end=row_end,
        # Who sees key j: from the first row that ends after it to the last that starts by it.
        col_start=torch.searchsorted(row_end, key, right=True, out_int32=True),
        col_end=torch.searchsorted(row_start, key, right=True, out_int32=True),
        causal=_causal(end),
        document_lengths=tuple(lengths.tolist()),
        plain_documents=_plain_documents(lengths, start, end),
    )


def _causal(row_end: Tensor) -> bool:
    return torch.equal(row_end, torch.arange(1, len(row_end) + 1))


def _plain_documents(lengths: Tensor, row_start: Tensor, row_end: Tensor) -> tuple[bool, ...]:
    """Which documents are causal from their first token on; all int64 on the host."""
    document = torch.arange(len(lengths)).repeat_interleave(lengths)
    first = (lengths.cumsum(0) - lengths)[document]
    other = (row_start != first) | (row_end != torch.arange(1, len(row_end) + 1))
    return tuple((torch.bincount(document, other) == 0).tolist())


def _check_rows(start: Tensor, end: Tensor) -> None:
    """Raise ValueError, naming the first bad row, unless the int64 host bounds are as promised."""
    tokens = len(start)
    falls = torch.zeros(tokens, dtype=torch.bool)
    falls[1:] = (start.diff() < 0) | (end.diff() < 0)
    bad = (start >= end) | (start < 0) | (end > tokens) | falls
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    name = f"row_start, row_end: row {row} sees [{start[row]}, {end[row]})"
    if start[row] >= end[row]:
        raise ValueError(f"{name}, which is empty; the end is exclusive")
    if start[row] < 0 or end[row] > tokens:
        raise ValueError(f"{name}, which leaves the keys [0, {tokens})")
    raise ValueError(
        f"{name} after [{start[row - 1]}, {end[row - 1]}); expected bounds that never decrease"
    )


def _checked_lengths(document_lengths: Iterable[int]) -> tuple[int, ...]:
    lengths = tuple(integer("document_lengths", length) for length in document_lengths)
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


def checked_spans(
    bidirectional_spans: Iterable[tuple[int, int]], lengths: Sequence[int], part: str
) -> tuple[tuple[int, int], ...]:
    """The spans as a tuple; ValueError unless sorted, apart, and each within one part of the row.

    The parts, called `part` in messages, have these lengths and stand one after another.
    """
    spans = []
    number, first, last = 0, 0, lengths[0]  # the part whose tokens are [first, last)
    previous_end = 0
    for span in bidirectional_spans:
        if not isinstance(span, (tuple, list)) or len(span) != 2:
            raise ValueError(f"bidirectional_spans: expected pairs (start, end), got {span!r}")
        start, end = (integer("bidirectional_spans", bound) for bound in span)
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
            number += 1
            first, last = last, last + lengths[number]
        if end > last:
            raise ValueError(f"{name} crosses the end of {part} {number}, [{first}, {last})")
        spans.append((start, end))
        previous_end = end
    return tuple(spans)


def enclosing_spans(spans: Sequence[tuple[int, int]], tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each token of a row lies in a span, bool [T], and that one's start and end, [T].

    Outside of a span the bounds are those of any. There must be a span.
    """
    token = torch.arange(tokens)
    starts, ends = torch.tensor(list(zip(*spans, strict=True)))  # [2, spans]
    span = torch.searchsorted(starts, token, right=True) - 1  # -1 before the first
    return (span >= 0) & (token < ends[span]), starts[span], ends[span]


def integer(name: str, value: int) -> int:
    """`value` as an int; ValueError, naming the argument, for what is none."""
    if isinstance(value, bool):
        raise ValueError(f"{name}: expected integers, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected integers, got {value!r}") from None
