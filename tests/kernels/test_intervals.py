import pytest
import torch
from hypothesis import given, settings

from metamorph_kernels import Intervals, intervals_from_rows, key_intervals, reference
from tests.kernels.packed_rows import (
    brute_force_mask,
    mask_of_rows,
    non_decreasing_rows,
    packed_rows,
)

VECTORS = ("row_start", "row_end", "col_start", "col_end")


@settings(max_examples=60, deadline=None)
@given(packed_rows())
def test_rows_columns_and_monotony_against_brute_force(row):
    lengths, spans = row
    intervals = key_intervals(lengths, spans)
    mask = brute_force_mask(lengths, spans)
    token = torch.arange(sum(lengths))
    rows = (intervals.row_start[:, None] <= token) & (token < intervals.row_end[:, None])
    columns = (intervals.col_start <= token[:, None]) & (token[:, None] < intervals.col_end)
    assert torch.equal(rows, mask)
    assert torch.equal(columns, mask)
    assert torch.equal(reference.interval_mask(intervals), mask)
    check_vectors(intervals, mask)
    assert intervals.document_lengths == tuple(lengths)


@settings(max_examples=60, deadline=None)
@given(packed_rows())
def test_from_rows_equals_from_lists(row):
    lists = key_intervals(*row)
    rows = intervals_from_rows(lists.row_start.long(), lists.row_end)
    for name in VECTORS:
        assert torch.equal(getattr(rows, name), getattr(lists, name)), name
    assert rows.causal == lists.causal
    assert rows.document_lengths == lists.document_lengths
    assert rows.plain_documents == lists.plain_documents


@settings(max_examples=150, deadline=None)
@given(non_decreasing_rows())
def test_from_rows_against_brute_force(bounds):
    starts, ends = bounds
    mask = mask_of_rows(starts, ends)
    intervals = intervals_from_rows(torch.tensor(starts), torch.tensor(ends))
    assert intervals.row_start.tolist() == starts and intervals.row_end.tolist() == ends
    check_vectors(intervals, mask)
    for key in range(len(starts)):
        seen_by = mask[:, key].nonzero()[:, 0].tolist()
        interval = list(range(intervals.col_start[key], intervals.col_end[key]))
        assert interval == seen_by
        assert intervals.col_start[key] <= intervals.col_end[key]

    # Documents: as short as can be while nothing crosses them.
    cuts = [
        cut
        for cut in range(1, len(starts))
        if not mask[:cut, cut:].any() and not mask[cut:, :cut].any()
    ]
    firsts = [0, *cuts]
    lasts = [*cuts, len(starts)]
    assert intervals.document_lengths == tuple(
        last - first for first, last in zip(firsts, lasts, strict=True)
    )


def check_vectors(intervals, mask):
    """The vectors and what follows from them against the mask."""
    tokens = len(mask)
    for name in VECTORS:
        vector = getattr(intervals, name)
        assert vector.dtype == torch.int32 and vector.shape == (tokens,)
        assert (vector.diff() >= 0).all(), name
    last_key = [int(row.nonzero().max()) for row in mask]
    assert intervals.causal == (last_key == list(range(tokens)))
    if intervals.causal:
        assert intervals.col_start.tolist() == list(range(tokens))
    assert sum(intervals.document_lengths) == tokens
    assert len(intervals.plain_documents) == len(intervals.document_lengths)
    first = 0
    for length, plain in zip(intervals.document_lengths, intervals.plain_documents, strict=True):
        inside = slice(first, first + length)
        block = mask[inside, inside]
        assert mask[inside].sum() == block.sum() == mask[:, inside].sum()
        assert plain == torch.equal(block, torch.ones_like(block).tril())
        first += length


@pytest.mark.parametrize("window", [1, 3, 20])
def test_sliding_windows(window):
    lengths = [7, 1, 9]
    documents = key_intervals(lengths)
    token = torch.arange(17)
    start = torch.maximum(documents.row_start, token + 1 - window)
    intervals = intervals_from_rows(start, token + 1)
    mask = brute_force_mask(lengths, []) & (token[:, None] - token < window)
    assert torch.equal(reference.interval_mask(intervals), mask)
    check_vectors(intervals, mask)
    assert intervals.causal
    if window == 1:
        assert intervals.document_lengths == (1,) * 17 and all(intervals.plain_documents)
    else:
        assert intervals.document_lengths == (7, 1, 9)
        assert intervals.plain_documents == ((False, True, False) if window == 3 else (True,) * 3)


def test_rows_that_do_not_see_themselves_and_keys_that_nobody_sees():
    intervals = intervals_from_rows(torch.tensor([1, 1, 1, 3]), torch.tensor([2, 2, 2, 4]))
    assert intervals.col_start.tolist() == [0, 0, 3, 3]
    assert intervals.col_end.tolist() == [0, 3, 3, 4]
    assert intervals.document_lengths == (3, 1)
    assert intervals.plain_documents == (False, True)
    assert not intervals.causal


def test_from_rows_keeps_its_own_copy_of_strided_views():
    bounds = torch.tensor([[0, 1], [0, 2], [2, 3]], dtype=torch.int32)
    intervals = intervals_from_rows(bounds[:, 0], bounds[:, 1])
    bounds.zero_()
    assert intervals.row_start.tolist() == [0, 0, 2] and intervals.row_start.is_contiguous()
    assert intervals.row_end.tolist() == [1, 2, 3]


def test_a_small_row_by_hand():
    intervals = key_intervals([2, 4], [(3, 5)])
    assert intervals.row_start.tolist() == [0, 0, 2, 2, 2, 2]
    assert intervals.row_end.tolist() == [1, 2, 3, 5, 5, 6]
    assert intervals.col_start.tolist() == [0, 1, 2, 3, 3, 5]
    assert intervals.col_end.tolist() == [2, 2, 6, 6, 6, 6]
    assert intervals.document_lengths == (2, 4)
    assert intervals.plain_documents == (True, False)
    assert not intervals.causal


def test_spans_of_one_token_change_nothing():
    intervals = key_intervals([2, 4], [(3, 4)])
    assert intervals.causal and intervals.plain_documents == (True, True)


def test_lists_of_any_integer_type_and_neighbouring_spans():
    numbers = torch.tensor([3, 4]).numpy()
    intervals = key_intervals(numbers, [[3, 5], [5, 7]])
    assert intervals.document_lengths == (3, 4)
    assert intervals.row_end.tolist() == [1, 2, 3, 5, 5, 7, 7]


def test_to_moves_the_tensors_and_keeps_the_lists():
    moved = key_intervals([2, 3], [(2, 4)]).to("meta")
    assert isinstance(moved, Intervals)
    vectors = (moved.row_start, moved.row_end, moved.col_start, moved.col_end)
    assert all(vector.device.type == "meta" for vector in vectors)
    assert moved.document_lengths == (2, 3) and moved.plain_documents == (True, False)
    assert not moved.causal
    assert key_intervals([2], device="meta").col_end.device.type == "meta"
    with pytest.raises(AttributeError):
        moved.row_start = None


@pytest.mark.parametrize(
    ("lengths", "spans", "words"),
    [
        ([], [], "document_lengths.*got none"),
        ([3, 0], [], "document_lengths.*got 0 at 1"),
        ([3, -2], [], "document_lengths.*got -2"),
        ([2.5], [], "document_lengths.*got 2.5"),
        ([True], [], "document_lengths.*got True"),
        ([2**31], [], "document_lengths.*2147483648"),
        ([4], [(2, 2)], r"bidirectional_spans.*\(2, 2\).*empty"),
        ([4], [(3, 2)], r"bidirectional_spans.*\(3, 2\)"),
        ([4], [(-1, 2)], r"bidirectional_spans.*\(-1, 2\)"),
        ([6], [(0, 3), (2, 5)], r"bidirectional_spans.*\(2, 5\).*overlap"),
        ([6], [(3, 5), (0, 2)], r"bidirectional_spans.*\(0, 2\).*sorted"),
        ([3, 4], [(2, 5)], r"bidirectional_spans.*\(2, 5\) crosses.*document 0, \[0, 3\)"),
        ([3, 4, 2], [(3, 8)], r"bidirectional_spans.*\(3, 8\) crosses.*document 1, \[3, 7\)"),
        ([3, 4], [(5, 8)], r"bidirectional_spans.*\(5, 8\).*7 tokens"),
        ([4], [(1, 2, 3)], r"bidirectional_spans.*\(1, 2, 3\)"),
        ([4], [7], "bidirectional_spans.*got 7"),
        ([4], [(0.5, 2)], "bidirectional_spans.*got 0.5"),
    ],
)
def test_refuses(lengths, spans, words):
    with pytest.raises(ValueError, match=words):
        key_intervals(lengths, spans)


@pytest.mark.parametrize(
    ("starts", "ends", "words"),
    [
        ([0, 1, 1], [1, 1, 2], r"row 1 sees \[1, 1\), which is empty"),
        ([0, 2], [1, 1], r"row 1 sees \[2, 1\), which is empty"),
        ([-1, 0], [1, 2], r"row 0 sees \[-1, 1\), which leaves the keys \[0, 2\)"),
        ([0, 0], [1, 3], r"row 1 sees \[0, 3\), which leaves the keys \[0, 2\)"),
        ([0, 0, 1, 0], [1, 2, 3, 4], r"row 3 sees \[0, 4\) after \[1, 3\).*never decrease"),
        ([0, 0, 0, 0], [4, 3, 4, 4], r"row 1 sees \[0, 3\) after \[0, 4\).*never decrease"),
        ([0, 2, 9], [1, 1, 2], "row 1 "),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_from_rows_refuses_bounds(starts, ends, words, dtype):
    with pytest.raises(ValueError, match="row_start, row_end: " + words):
        intervals_from_rows(torch.tensor(starts, dtype=dtype), torch.tensor(ends, dtype=dtype))


@pytest.mark.parametrize(
    ("row_start", "row_end", "words"),
    [
        (torch.zeros(0).int(), torch.zeros(0).int(), "row_start: .*at least one row, got none"),
        ([0], torch.ones(1).int(), "row_start: expected a tensor, got list"),
        (torch.zeros(1).int(), [1], "row_end: expected a tensor, got list"),
        (torch.zeros(1), torch.ones(1), "row_start: expected torch.int32 or .*got torch.float32"),
        (torch.zeros(1).int(), torch.ones(1), "row_end: expected torch.int32.*got torch.float32"),
        (torch.zeros(1, 1).int(), torch.ones(1).int(), r"row_start: .*\[T\].*got \[1, 1\]"),
        (torch.zeros(2).int(), torch.ones(1).int(), r"row_end: .*\[T\] = \[2\], got \[1\]"),
        (
            torch.zeros(1).int(),
            torch.ones(1, device="meta").int(),
            "row_end: expected device cpu, got meta",
        ),
    ],
)
def test_from_rows_refuses_tensors(row_start, row_end, words):
    with pytest.raises(ValueError, match=words):
        intervals_from_rows(row_start, row_end)
