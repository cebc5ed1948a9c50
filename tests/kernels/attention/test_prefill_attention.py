import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies

from metamorph_kernels import (
    decode_attention,
    interval_attention,
    key_intervals,
    prefill_attention,
    prefill_row,
    reference,
)
from tests.kernels.cache_pieces import cache_pieces, tokens_of
from tests.kernels.comparisons import assert_as_good_as_plain

SEQUENCES, SLOTS = 3, 15
PIECES = [(1, 0, 4), (0, 9, 6), (2, 3, 1), (1, 4, 5)]
SPANS = [(1, 4), (6, 8)]


def inputs(tokens, query_heads=6, key_heads=2, head_dim=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, query_heads, head_dim)] + 2 * [(SEQUENCES, SLOTS, key_heads, head_dim)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def brute_force(q, k_cache, v_cache, pieces, spans, scale):
    """A query and a head at a time."""
    group = q.shape[1] // k_cache.shape[2]
    out = torch.empty_like(q)
    for query, (sequence, _, visible) in enumerate(tokens_of(pieces, spans)):
        for head in range(q.shape[1]):
            keys, values = (
                cache[sequence, :visible, head // group] for cache in (k_cache, v_cache)
            )
            out[query, head] = (scale * (keys @ q[query, head])).softmax(0) @ values
    return out


@settings(max_examples=40, deadline=None)
@given(cache_pieces(sequences=SEQUENCES), strategies.sampled_from([(6, 2), (2, 2), (5, 1)]))
def test_random_pieces_against_brute_force(drawn, heads):
    pieces, spans = drawn
    row = prefill_row(pieces, spans)
    q, k_cache, v_cache = inputs(len(row.visible), *heads)
    expected = brute_force(q, k_cache, v_cache, pieces, spans, scale=0.3)
    oracle = reference.prefill_attention(q, k_cache, v_cache, row, scale=0.3)
    torch.testing.assert_close(oracle, expected)
    for sequence in range(SEQUENCES):  # what nobody sees is NaN
        seen = [start + count for number, start, count in pieces if number == sequence]
        for cache in (k_cache, v_cache):
            cache[sequence, max(seen, default=0) :] = torch.nan
    ours = prefill_attention(q, k_cache, v_cache, row, scale=0.3)
    torch.testing.assert_close(ours, expected)


def test_pieces_alike_in_neighbouring_sequences_are_as_alone():
    pieces = [(0, 2, 3), (1, 2, 3), (2, 2, 3), (0, 0, 2), (1, 0, 2), (0, 5, 3), (0, 5, 3)]
    row = prefill_row(pieces, [(4, 6)])
    q, k_cache, v_cache = inputs(len(row.visible))
    ours = prefill_attention(q, k_cache, v_cache, row)
    torch.testing.assert_close(ours, reference.prefill_attention(q, k_cache, v_cache, row))


def test_a_prompt_in_chunks_equals_the_prompt_as_a_document():
    prompt = torch.arange(12)
    q, k_cache, v_cache = inputs(12)
    whole = interval_attention(
        q, k_cache[1, prompt], v_cache[1, prompt], key_intervals([12], [(5, 8)])
    )
    for cuts in ([12], [3, 9], [5, 3, 4], [1, 1, 1, 9]):
        out, start = [], 0
        for count in cuts:
            spans = [(5 - start, 8 - start)] if start <= 5 < start + count else []
            row = prefill_row([(1, start, count)], spans)
            out.append(prefill_attention(q[start : start + count], k_cache, v_cache, row))
            start += count
        torch.testing.assert_close(torch.cat(out), whole)


def test_one_token_a_sequence_is_decoding():
    q, k_cache, v_cache = inputs(3)
    row = prefill_row([(0, 6, 1), (1, 0, 1), (2, 14, 1)])
    decoded = decode_attention(q, k_cache, v_cache, torch.tensor([7, 1, 15]))
    torch.testing.assert_close(prefill_attention(q, k_cache, v_cache, row), decoded)


def test_what_is_not_finite_reaches_its_own_piece_alone():
    row = prefill_row(PIECES, SPANS)
    tensors = inputs(len(row.visible))
    before = prefill_attention(*tensors, row)
    tensors[2][1, 8] = torch.nan  # the last token of the last piece
    after = prefill_attention(*tensors, row)
    assert torch.equal(after[:11], before[:11])
    assert after[-1].isnan().all()


def test_gradcheck():
    row = prefill_row([(1, 1, 2), (0, 0, 2)])
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 2, 2), (2, 3, 1, 2), (2, 3, 1, 2))
    tensors = [torch.randn(shape, generator=generator).double() for shape in shapes]
    torch.autograd.gradcheck(
        lambda q, k, v: prefill_attention(q, k, v, row),
        [tensor.requires_grad_() for tensor in tensors],
    )


def test_bfloat16_is_as_good_as_plain_bfloat16():
    row = prefill_row(PIECES, SPANS)
    mask = torch.arange(SLOTS) < row.visible[:, None]

    def plain(q, k_cache, v_cache):
        k, v = (
            cache[row.sequences].repeat_interleave(3, 2).transpose(1, 2)
            for cache in (k_cache, v_cache)
        )
        return F.scaled_dot_product_attention(q[:, :, None], k, v, mask[:, None, None])[:, :, 0]

    assert_as_good_as_plain(
        lambda q, k, v: prefill_attention(q, k, v, row), plain, *inputs(16, head_dim=16)
    )


def test_compiled_equals_eager():
    compiled = torch.compile(prefill_attention, fullgraph=True, backend="aot_eager")
    for pieces, spans in ((PIECES, SPANS), ([(0, 3, 2)], [])):
        row = prefill_row(pieces, spans)
        tensors = inputs(len(row.visible), dtype=torch.float32)
        assert torch.equal(compiled(*tensors, row), prefill_attention(*tensors, row))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(16, 6)}, r"q: .*got \[16, 6\]"),
        ({"k_cache": torch.ones(15, 2, 5)}, r"k_cache: .*B, S, Hkv, D.*got \[15, 2, 5\]"),
        ({"k_cache": torch.ones(3, 15, 2, 4)}, r"k_cache: .*\[any, any, any, 5\], got"),
        ({"v_cache": torch.ones(2, 15, 2, 5)}, r"v_cache: .*\[3, 15, 2, 5\], got \[2, 15, 2, 5\]"),
        ({"q": torch.ones(16, 5, 5)}, "q: .*multiple of the 2 key heads, got 5"),
        ({"v_cache": torch.ones(3, 15, 2, 5).half()}, "v_cache: .*float32.*got torch.float16"),
        ({"row": PIECES}, "row: expected a PrefillRow, got list"),
        ({"row": prefill_row(PIECES[:3])}, r"row: expected shape \[T\] = \[16\], got \[11\]"),
        ({"row": prefill_row(PIECES, device="meta")}, "row: expected device cpu, got meta"),
        (
            {"row": prefill_row([(1, 0, 8), (3, 0, 8)])},
            r"row: piece \(sequence, start, count\) = \(3, 0, 8\) does not fit a cache of 3 seq",
        ),
        (
            {"row": prefill_row([(1, 0, 8), (2, 8, 8)])},
            r"row: piece .* \(2, 8, 8\) does not fit a cache of 3 sequences of 15 keys",
        ),
        ({"impl": "cuda"}, "impl: prefill_attention takes 'auto', .*'torch', got 'cuda'"),
        ({"scale": -1.0}, "scale: expected a positive number, got -1.0"),
    ],
)
def test_refuses(change, words):
    q, k_cache, v_cache = inputs(16, dtype=torch.float32)
    arguments = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "row": prefill_row(PIECES)}
    with pytest.raises(ValueError, match=words):
        prefill_attention(**(arguments | change))
