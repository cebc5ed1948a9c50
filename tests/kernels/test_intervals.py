import pytest
import torch
from hypothesis import given, settings
from packed_rows import brute_force_mask, packed_rows

from metamorph_kernels import Intervals, key_intervals, reference


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
    for name in ("row_start", "row_end", "col_start", "col_end"):
        vector = getattr(intervals, name)
        assert vector.dtype == torch.int32 and vector.shape == (sum(lengths),)
        assert (vector.diff() >= 0).all(), name


def test_a_small_row_by_hand():
    intervals = key_intervals([2, 4], [(3, 5)])
    assert intervals.row_start.tolist() == [0, 0, 2, 2, 2, 2]
    assert intervals.row_end.tolist() == [1, 2, 3, 5, 5, 6]
    assert intervals.col_start.tolist() == [0, 1, 2, 3, 3, 5]
    assert intervals.col_end.tolist() == [2, 2, 6, 6, 6, 6]
    assert intervals.document_lengths == (2, 4)
    assert intervals.bidirectional_spans == ((3, 5),)


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
    assert moved.document_lengths == (2, 3)
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
