import pytest
import torch

from metamorph_kernels import intervals_from_rows, key_intervals
from metamorph_kernels.attention.tile_order_triton import longest_first
from tests.kernels.random_rows import random_row


def by_sorting(intervals, tile):
    first = torch.arange(0, len(intervals.col_end), tile)
    last = (first + tile).clamp(max=len(intervals.col_end)) - 1
    length = intervals.col_end.cpu()[last] - intervals.col_start.cpu()[first]
    return length.argsort(descending=True, stable=True)


@pytest.mark.parametrize("seed", range(12))
def test_tiles_are_sorted_by_their_queries(device, seed):
    """Fewer and more tiles than a program ranks; equal ones stay in their order."""
    lengths, spans = random_row(seed, (30, 300, 900)[seed % 3], 9)
    intervals = key_intervals(lengths, spans if seed % 2 else (), device=device)
    tile = (4, 16, 128)[seed // 3 % 3]
    found = longest_first(intervals.col_start, intervals.col_end, intervals.causal, tile)
    assert found.dtype == torch.int32 and torch.equal(
        found.cpu().long(), by_sorting(intervals, tile)
    )


def test_keys_that_nobody_sees_come_last(device):
    starts = torch.full((40,), 30, device=device)
    intervals = intervals_from_rows(starts, torch.full((40,), 40, device=device))
    found = longest_first(intervals.col_start, intervals.col_end, intervals.causal, 8)
    assert found.tolist()[-3:] == [0, 1, 2]
