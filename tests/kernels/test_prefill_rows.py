import pytest
import torch
from hypothesis import given, settings

from metamorph_kernels import PrefillRow, prefill_row
from metamorph_kernels.prefill_rows import BLOCK_QUERIES
from tests.kernels.cache_pieces import cache_pieces, tokens_of

VECTORS = ("sequences", "positions", "visible", "blocks")


@settings(max_examples=80, deadline=None)
@given(cache_pieces())
def test_tokens_against_the_definition(drawn):
    pieces, spans = drawn
    row = prefill_row(pieces, spans)
    columns = (row.sequences.tolist(), row.positions.tolist(), row.visible.tolist())
    assert list(zip(*columns, strict=True)) == tokens_of(pieces, spans)
    assert row.sequences.dtype == row.positions.dtype == torch.int64
    assert row.visible.dtype == row.blocks.dtype == torch.int32
    assert row.pieces == tuple(pieces)
    assert row.sequence_count == max(sequence for sequence, _, _ in pieces) + 1
    assert row.key_count == max(row.visible)
    first = 0
    for (_, _, count), plain in zip(pieces, row.plain_pieces, strict=True):
        piece = slice(first, first + count)
        assert plain == torch.equal(row.visible[piece], row.positions[piece] + 1)
        first += count


def test_blocks_cover_every_query_once_within_its_piece_and_start_with_the_most_keys():
    pieces = [(1, 5, 2 * BLOCK_QUERIES + 3), (0, 0, 1), (1, 900, BLOCK_QUERIES), (2, 7, 20)]
    row = prefill_row(pieces, [(130, 135)])
    covered = []
    for sequence, first, end in row.blocks.tolist():
        assert 0 < end - first <= BLOCK_QUERIES
        assert set(row.sequences[first:end].tolist()) == {sequence}
        assert (row.positions[first:end].diff() == 1).all()
        covered += range(first, end)
    assert sorted(covered) == list(range(len(row.visible)))
    keys = [int(row.visible[end - 1]) for _, _, end in row.blocks.tolist()]
    assert keys == sorted(keys, reverse=True)


def test_a_small_row_by_hand():
    row = prefill_row([(2, 4, 3), (0, 0, 2), (2, 7, 1)], [(1, 3)])
    assert row.sequences.tolist() == [2, 2, 2, 0, 0, 2]
    assert row.positions.tolist() == [4, 5, 6, 0, 1, 7]
    assert row.visible.tolist() == [5, 7, 7, 1, 2, 8]
    assert row.blocks.tolist() == [[2, 5, 6], [2, 0, 3], [0, 3, 5]]
    assert row.plain_pieces == (False, True, True)
    assert (row.sequence_count, row.key_count) == (3, 8)


def test_lists_of_any_integer_type_and_generators():
    row = prefill_row(torch.tensor([[1, 0, 3]]).tolist(), ([start, start + 1] for start in (0, 2)))
    assert row.visible.tolist() == [1, 2, 3] and row.plain_pieces == (True,)
    row = prefill_row([tuple(torch.tensor([1, 4, 2]).numpy())])
    assert row.pieces == ((1, 4, 2),) and type(row.pieces[0][0]) is int


def test_to_moves_the_tensors_and_keeps_the_rest():
    moved = prefill_row([(1, 2, 3)]).to("meta")
    assert isinstance(moved, PrefillRow)
    assert all(getattr(moved, name).device.type == "meta" for name in VECTORS)
    assert moved.pieces == ((1, 2, 3),) and moved.key_count == 5
    assert prefill_row([(1, 2, 3)], device="meta").blocks.device.type == "meta"
    with pytest.raises(AttributeError):
        moved.visible = None


@pytest.mark.parametrize(
    ("pieces", "spans", "words"),
    [
        ([], [], "pieces: expected at least one piece, got none"),
        ([(0, 1)], [], r"pieces: expected triples \(sequence, start, count\), got \(0, 1\)"),
        ([7], [], "pieces: expected triples .* got 7"),
        ([(0, 1, 2.5)], [], "pieces: expected integers, got 2.5"),
        ([(True, 1, 2)], [], "pieces: expected integers, got True"),
        ([(0, 0, 1), (-1, 0, 1)], [], r"pieces: \(-1, 0, 1\) at 1: expected a sequence and a"),
        ([(0, -2, 1)], [], r"pieces: \(0, -2, 1\) at 0: .*start of 0 or more"),
        ([(0, 2, 0)], [], r"pieces: \(0, 2, 0\) at 0: expected one token or more"),
        ([(0, 2**31 - 1, 1)], [], r"pieces: .* at 0: .*below 2\*\*31"),
        ([(2**31, 0, 1)], [], r"pieces: .* at 0: .*below 2\*\*31"),
        ([(0, 0, 2**30)] * 2, [], r"pieces: expected fewer than 2\*\*31 tokens, got 2147483648"),
        ([(0, 3, 4)], [(2, 2)], r"bidirectional_spans.*\(2, 2\).*empty"),
        ([(0, 3, 4)], [(0, 5)], r"bidirectional_spans.*\(0, 5\).*4 tokens"),
        ([(0, 0, 3), (0, 3, 4)], [(2, 4)], r"\(2, 4\) crosses the end of piece 0, \[0, 3\)"),
        ([(0, 3, 4)], [(1, 3), (0, 1)], r"bidirectional_spans.*\(0, 1\).*sorted"),
        ([(0, 3, 4)], [1], "bidirectional_spans: expected pairs.*got 1"),
    ],
)
def test_refuses(pieces, spans, words):
    with pytest.raises(ValueError, match=words):
        prefill_row(pieces, spans)
