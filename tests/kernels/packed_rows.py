"""Random packed rows and intervals, and their masks counted out token by token."""

import torch
from hypothesis import strategies


@strategies.composite
def packed_rows(draw, longest=9, most=5):
    """(document lengths, bidirectional spans) of a small packed row."""
    lengths = draw(strategies.lists(strategies.integers(1, longest), min_size=1, max_size=most))
    spans = []
    first = 0
    for length in lengths:
        bounds = strategies.lists(
            strategies.integers(first, first + length), unique=True, max_size=4
        )
        cuts = sorted(draw(bounds))
        spans += zip(cuts[::2], cuts[1::2], strict=False)
        first += length
    return lengths, spans


def brute_force_mask(lengths, spans):
    """bool [T, T] from the words of the definition, without intervals."""
    document = [index for index, length in enumerate(lengths) for _ in range(length)]
    mask = torch.zeros(len(document), len(document), dtype=torch.bool)
    for query in range(len(document)):
        for key in range(len(document)):
            together = any(start <= query < end and start <= key < end for start, end in spans)
            mask[query, key] = document[query] == document[key] and (key <= query or together)
    return mask


@strategies.composite
def non_decreasing_rows(draw, longest=9):
    """Lists (row_start, row_end) of any mask that `intervals_from_rows` takes."""
    tokens = draw(strategies.integers(1, longest))
    bounds = strategies.lists(strategies.integers(0, tokens), min_size=tokens, max_size=tokens)
    starts = sorted(min(start, tokens - 1) for start in draw(bounds))
    ends = sorted(draw(bounds))
    return starts, [max(start + 1, end) for start, end in zip(starts, ends, strict=True)]


def mask_of_rows(starts, ends):
    """bool [T, T], counted out."""
    mask = torch.zeros(len(starts), len(starts), dtype=torch.bool)
    for query, (start, end) in enumerate(zip(starts, ends, strict=True)):
        mask[query, start:end] = True
    return mask
