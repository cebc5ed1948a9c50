"""New tokens of several sequences packed into one row, and what each sees of a key/value cache."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metamorph_kernels.intervals import checked_spans, enclosing_spans, integer
from metamorph_kernels.transfer import send

BLOCK_QUERIES = 128  # the most queries of a block of the kernel's table

Piece = tuple[int, int, int]  # sequence, start, count


@dataclass(frozen=True, eq=False)
class PrefillRow:
    """Pieces of sequences packed one after another into T queries; made by `prefill_row`.

    Query i is the token at positions[i] of the sequence in row sequences[i] of the cache, and sees
    its keys [0, visible[i]). sequences and positions are int64 [T], as a cache is indexed; visible
    is int32 [T] and never decreases within a piece.

    `blocks`, int32 [blocks, 3], is the kernel's table: (sequence, first query, end of queries) of
    up to `BLOCK_QUERIES` queries of one piece, those first that see most keys.

    The host tuples serve the PyTorch path and the checks: the pieces (sequence, start, count), and
    which of them are plainly causal. The cache needs `sequence_count` sequences of `key_count`
    keys.
    """

    sequences: Tensor
    positions: Tensor
    visible: Tensor
    blocks: Tensor
    pieces: tuple[Piece, ...]
    plain_pieces: tuple[bool, ...]
    sequence_count: int
    key_count: int

    def to(self, device: torch.device | str) -> "PrefillRow":
        """The same row with the tensors on `device`."""
        return replace(
            self,
            sequences=send(self.sequences, device),
            positions=send(self.positions, device),
            visible=send(self.visible, device),
            blocks=send(self.blocks, device),
        )


def prefill_row(
    pieces: Iterable[Piece],
    bidirectional_spans: Iterable[tuple[int, int]] = (),
    device: torch.device | str = "cpu",
) -> PrefillRow:
    """The row of the pieces (sequence, start, count), for `prefill_attention`.

    A piece is `count` new tokens of the sequence in row `sequence` of the cache, at its positions
    start .. start + count - 1. Pieces stand in the row in the order given, which may be any;
    a sequence may have several. Each token sees its sequence from position 0 to itself. Tokens of a
    bidirectional span, `(start, end)` in packed coordinates of the row with the end exclusive, see
    the whole span too. All of it is planned on the host, and nothing waits for the device.

    Raises ValueError for pieces that are not three integers, negative sequences and starts, counts
    that are not positive, and for spans that are empty, unsorted, overlapping, or cross a piece.
    """
    checked = _checked_pieces(pieces)
    sequences, starts, counts = torch.tensor(checked).t()  # [pieces]
    spans = checked_spans(bidirectional_spans, [count for _, _, count in checked], "piece")

    # A token stands as far behind its place in the row as its piece's start behind its first token.
    firsts = counts.cumsum(0) - counts
    offset = torch.repeat_interleave(starts - firsts, counts)  # [T]
    positions = offset + torch.arange(len(offset))
    visible = positions + 1
    if spans:
        inside, _, span_end = enclosing_spans(spans, len(offset))
        visible = torch.where(inside, span_end + offset, visible)
    wide = torch.zeros(len(offset) + 1, dtype=torch.int64)  # of the tokens before, who sees further
    wide[1:] = (visible > positions + 1).cumsum(0)
    row = PrefillRow(
        sequences=torch.repeat_interleave(sequences, counts),
        positions=positions,
        visible=visible.int(),
        blocks=_blocks(checked),
        pieces=checked,
        plain_pieces=tuple((wide[firsts + counts] == wide[firsts]).tolist()),
        sequence_count=max(sequence for sequence, _, _ in checked) + 1,
        key_count=max(start + count for _, start, count in checked),
    )
    return row.to(device)


def _checked_pieces(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    checked = []
    for number, piece in enumerate(pieces):
        if not isinstance(piece, (tuple, list)) or len(piece) != 3:
            raise ValueError(f"pieces: expected triples (sequence, start, count), got {piece!r}")
        sequence, start, count = (integer("pieces", value) for value in piece)
        name = f"pieces: ({sequence}, {start}, {count}) at {number}"
        if sequence < 0 or start < 0:
            raise ValueError(f"{name}: expected a sequence and a start of 0 or more")
        if count <= 0:
            raise ValueError(f"{name}: expected one token or more")
        if start + count >= 2**31 or sequence >= 2**31:
            raise ValueError(f"{name}: expected sequences and positions below 2**31")
        checked.append((sequence, start, count))
    if not checked:
        raise ValueError("pieces: expected at least one piece, got none")
    tokens = sum(count for _, _, count in checked)
    if tokens >= 2**31:
        raise ValueError(f"pieces: expected fewer than 2**31 tokens, got {tokens}")
    return tuple(checked)


def _blocks(pieces: tuple[Piece, ...]) -> Tensor:
    blocks = []  # (keys, sequence, first query, end of queries)
    first = 0
    for sequence, start, count in pieces:
        for done in range(0, count, BLOCK_QUERIES):
            stop = min(done + BLOCK_QUERIES, count)
            blocks.append((start + stop, sequence, first + done, first + stop))
        first += count
    blocks.sort(reverse=True)  # a GPU is done sooner when its longest work starts first
    return torch.tensor([block[1:] for block in blocks], dtype=torch.int32)
