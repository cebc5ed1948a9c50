"""A packed row shared by several ranks: that the design is exact, and what the page says of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.runs import context_parallel
from bench.runs.context_parallel import (
    ASSIGNMENTS,
    BLOCK,
    RANKS,
    balanced,
    contiguous,
    even_cuts,
    excess,
    head_tail,
    key_bytes,
    keys_sent,
    layer_work,
    pairs_of,
    shared,
)
from metamorph_kernels import Intervals, interval_attention, intervals_from_rows, key_intervals
from tests.pages import ROOT
from tests.six_families import write_six_families

ONE_DOCUMENT = key_intervals([2048])


@st.composite
def packings(draw) -> Intervals:
    """Some documents, of which some have a picture that sees itself whole."""
    lengths = draw(st.lists(st.integers(1, 20), min_size=2, max_size=8))
    spans, first = [], 0
    for length in lengths:
        start, end = sorted((draw(st.integers(0, length)), draw(st.integers(0, length))))
        if start < end:
            spans.append((first + start, first + end))
        first += length
    return key_intervals(lengths, spans)


def test_the_page_shows_what_the_command_prints(tmp_path, capsys):
    write_six_families(tmp_path)
    context_parallel.main(["--mixture", str(tmp_path / "six_families.yaml")])
    page = (ROOT / "docs/scaling.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page, table


@given(packings(), st.integers(2, 4))
def test_a_stretch_of_a_row_needs_one_interval_of_keys(intervals, ranks):
    """From the first that its first query sees to the last that its last one sees: with those,
    results and gradients are those of the whole row."""
    tokens = len(intervals.row_start)
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(tokens, heads, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (2, 1, 1)
    )
    out_gradient = torch.randn(tokens, 2, 8, generator=generator, dtype=torch.float64)
    whole = interval_attention(q, k, v, intervals)
    expected = torch.autograd.grad(whole, (q, k, v), out_gradient)

    owner, parts = contiguous(pairs_of(intervals), ranks), []
    for rank in range(ranks):
        own = owner == rank
        if not own.any():
            continue
        start, end = intervals.row_start[own], intervals.row_end[own]
        first, last = int(start[0]), int(end[-1])
        sent = torch.zeros(tokens, dtype=torch.bool)
        sent[first:last] = True
        assert torch.equal(keys_sent(intervals, own), sent & ~own)
        # Queries of other ranks in the interval are computed too, and their results dropped.
        inside = slice(first, last)
        near = intervals_from_rows(
            intervals.row_start[inside].clamp(min=first) - first,
            intervals.row_end[inside].clamp(max=last) - first,
        )
        parts.append(interval_attention(q[inside], k[inside], v[inside], near)[own[inside]])
    shared_out = torch.cat(parts)
    torch.testing.assert_close(shared_out, whole)
    torch.testing.assert_close(torch.autograd.grad(shared_out, (q, k, v), out_gradient), expected)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("assign", ASSIGNMENTS.values(), ids=list(ASSIGNMENTS))
def test_every_rank_has_its_part_of_the_row(assign, ranks):
    counts = torch.bincount(assign(pairs_of(ONE_DOCUMENT), ranks), minlength=ranks)
    assert counts.sum() == 2048 and len(counts) == ranks and counts.min() > 0
    if assign is not even_cuts:
        assert (counts == 2048 // ranks).all()


@pytest.mark.parametrize("ranks", RANKS)
def test_one_document(ranks):
    """The last of equal stretches has (2 ranks - 1) / ranks times the mean; pairs of stretches are
    even; cuts by work are even in work to less than a token."""
    pairs = pairs_of(ONE_DOCUMENT)
    stretches, pairs_of_stretches = (
        shared(ONE_DOCUMENT, assign(pairs, ranks), ranks) for assign in (contiguous, head_tail)
    )
    assert stretches.attention == pytest.approx((ranks - 1) / ranks, abs=1e-3)
    assert stretches.keys == 2048 * (ranks - 1) / ranks
    assert pairs_of_stretches.attention == 0
    work = layer_work(pairs)
    assert excess(work, even_cuts(pairs, ranks), ranks) < ranks * float(work.max() / work.sum())


def test_blocks_go_to_whoever_has_least():
    pairs = torch.ones(4 * BLOCK, dtype=torch.int64)
    pairs[:BLOCK] = 9  # with it comes the block that is left when the other rank is full
    owner = balanced(pairs, 2).view(4, BLOCK)
    assert owner[:, 0].tolist() == [0, 1, 1, 0]
    assert (owner == owner[:, :1]).all()


def test_bytes_of_a_token_of_an_8b():
    assert key_bytes(1) == 2 * 8 * 128 * 2 == 4096
    # Of each of 2 ranks' 8192 tokens half the heads: 64 of queries and results, 16 of keys, values.
    assert context_parallel.head_bytes(2) == 8192 * 80 * 128 * 2 / 2
