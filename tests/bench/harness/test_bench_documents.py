import pytest
import torch

from bench.harness.documents import IMAGE_TOKENS, KINDS, SyntheticRow, equal_row, packed_row
from bench.ops.attention import flops

SMALL = SyntheticRow(lengths=(5, 1, 7), spans=((1, 3), (3, 4), (7, 11)))


def mask_in_words(row):
    """bool [T, T]: the same document, and before or in the same image."""
    document = [index for index, length in enumerate(row.lengths) for _ in range(length)]
    image = [None] * row.tokens
    for index, (start, end) in enumerate(row.spans):
        image[start:end] = [index] * (end - start)
    return torch.tensor(
        [
            [
                document[query] == document[key]
                and (key <= query or (image[query] is not None and image[query] == image[key]))
                for key in range(row.tokens)
            ]
            for query in range(row.tokens)
        ]
    )


@pytest.mark.parametrize("seed", range(20))
def test_documents_fill_the_row_and_images_lie_inside_them(seed):
    row = packed_row(4096, "spans", seed)
    assert sum(row.lengths) == 4096 and min(row.lengths) > 0
    bounds = [0]
    for length in row.lengths:
        assert length <= max(kind.longest for kind in KINDS)
        bounds.append(bounds[-1] + length)
    owners = []
    for start, end in row.spans:
        assert end - start == IMAGE_TOKENS
        [owner] = [i for i, first in enumerate(bounds[:-1]) if first <= start < bounds[i + 1]]
        assert end <= bounds[owner + 1]
        owners.append(owner)
    assert set(range(len(row.lengths) - 1)) <= set(owners)  # all but the one that is cut
    assert all(one[1] <= other[0] for one, other in zip(row.spans, row.spans[1:], strict=False))


def test_a_seed_gives_one_row_and_no_spans_means_the_same_documents():
    assert packed_row(4096, "spans", 3) == packed_row(4096, "spans", 3)
    assert packed_row(4096, "spans", 3) != packed_row(4096, "spans", 4)
    causal = packed_row(4096, "documents", 3)
    assert causal.spans == () and causal.lengths == packed_row(4096, "spans", 3).lengths
    assert packed_row(4096, "one document").lengths == (4096,)
    assert [packed_row(4096, mask).mask for mask in ("spans", "documents", "one document")] == [
        "spans",
        "documents",
        "one document",
    ]


def test_the_shares_are_of_all_documents():
    assert sum(kind.share for kind in KINDS) == pytest.approx(1)


@pytest.mark.parametrize(
    "row", [SMALL, SyntheticRow((9,)), packed_row(300, "spans"), packed_row(300, "documents")]
)
def test_work_is_counted_by_visible_pairs(row):
    mask = mask_in_words(row)
    intervals = row.intervals(torch.device("cpu"))
    assert row.visible_pairs == mask.sum()
    assert row.visible_pairs == (intervals.row_end - intervals.row_start).sum()
    # q k^T and weights v: a multiplication and an addition for each of D elements, twice.
    assert flops(row, query_heads=3, head_dim=8) == mask.sum() * 3 * 8 * 2 * 2


def test_equal_documents_fill_the_row_and_one_of_them_is_plain_causal_attention():
    assert equal_row(384, 4) == SyntheticRow((96, 96, 96, 96))
    assert equal_row(384, 4).mask == "documents"
    assert equal_row(384, 1).mask == "one document"
