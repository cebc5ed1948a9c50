import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies

from metamorph_kernels import (
    decode_attention,
    decode_attention_on_host,
    interval_attention,
    key_intervals,
    reference,
)
from tests.kernels.comparisons import Record, assert_as_good_as_plain


def inputs(batch=4, slots=7, query_heads=6, key_heads=2, head_dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, query_heads, head_dim)] + 2 * [(batch, slots, key_heads, head_dim)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def in_memory_heads_first(cache):
    """The same cache [B, S, Hkv, D], but with the slots of a head one after another in memory."""
    return cache.transpose(1, 2).contiguous().transpose(1, 2)


LENGTHS = torch.tensor([1, 7, 4, 6])


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("query_heads", "key_heads", "scale"), [(6, 2, None), (3, 3, 0.2), (5, 1, None)]
)
def test_equals_reference(query_heads, key_heads, scale, integers):
    tensors = inputs(query_heads=query_heads, key_heads=key_heads)
    ours = decode_attention(*tensors, LENGTHS.to(integers), scale=scale)
    oracle = reference.decode_attention(*tensors, LENGTHS, scale=scale)
    torch.testing.assert_close(ours, oracle)


@pytest.mark.parametrize("lengths", [[1, 7, 4, 6], [5, 5, 5, 5], [0, 7, 0, 2], [0, 0, 0, 0]])
def test_unchecked_it_is_the_same(lengths):
    tensors, counts = inputs(), torch.tensor(lengths)
    found = decode_attention_on_host(counts, lengths, 0.2)(*tensors)
    assert torch.equal(found, decode_attention(*tensors, counts, scale=0.2))


def test_equals_the_last_row_of_interval_attention():
    q, k_cache, v_cache = inputs()
    out = decode_attention(q, k_cache, v_cache, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        queries = torch.zeros(length, *q.shape[1:], dtype=q.dtype)
        queries[-1] = q[row]
        whole = interval_attention(
            queries, k_cache[row, :length], v_cache[row, :length], key_intervals([length])
        )
        torch.testing.assert_close(out[row], whole[-1])


def test_slots_past_the_length_do_not_matter():
    q, k_cache, v_cache = inputs()
    before = decode_attention(q, k_cache, v_cache, LENGTHS)
    for fill in (1e4, float("inf"), float("nan")):
        for row, length in enumerate(LENGTHS.tolist()):
            k_cache[row, length:], v_cache[row, length:] = fill, -fill
        assert torch.equal(decode_attention(q, k_cache, v_cache, LENGTHS), before)
    k_cache[2, 3] += 1  # the last visible key of row 2
    after = decode_attention(q, k_cache, v_cache, LENGTHS)
    assert not torch.allclose(after[2], before[2])
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])


def test_an_empty_sequence_gives_zeros():
    q, k_cache, v_cache = inputs()
    out = decode_attention(q, k_cache, v_cache, torch.tensor([0, 7, 0, 2]))
    assert out[[0, 2]].eq(0).all() and out[[1, 3]].ne(0).all()


@settings(max_examples=40, deadline=None)
@given(
    strategies.one_of(
        strategies.lists(strategies.integers(0, 7), min_size=4, max_size=4),
        strategies.integers(0, 7).map(lambda length: [length] * 4),
    ),
    strategies.sampled_from([0.0, float("nan"), float("inf"), -float("inf")]),
    strategies.sampled_from(["k", "v", "both"]),
    strategies.booleans(),
)
def test_random_lengths_with_anything_behind_them(lengths, fill, where, heads_first):
    q, k_cache, v_cache = inputs()
    if heads_first:
        k_cache, v_cache = in_memory_heads_first(k_cache), in_memory_heads_first(v_cache)
    lengths = torch.tensor(lengths)
    expected = reference.decode_attention(q, k_cache, v_cache, lengths)
    for row, length in enumerate(lengths):
        if where != "v":
            k_cache[row, length:] = fill
        if where != "k":
            v_cache[row, length:] = fill
    torch.testing.assert_close(decode_attention(q, k_cache, v_cache, lengths), expected)
    with torch.inference_mode():
        torch.testing.assert_close(decode_attention(q, k_cache, v_cache, lengths), expected)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k_cache, v_cache)]
    out = decode_attention(*leaves, lengths)
    torch.testing.assert_close(out, expected)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("lengths", [[5, 5], [3, 5]])
def test_without_gradients_a_cpu_copies_no_cache_and_reads_no_key_past_the_longest(lengths):
    q, k_cache, v_cache = inputs(2, 400, head_dim=16)
    for turn in (torch.clone, in_memory_heads_first):
        caches = turn(k_cache), turn(v_cache)
        with Record() as record:
            decode_attention(q, *caches, torch.tensor(lengths))
        assert record.elements <= k_cache[:, :5].numel()


def test_gradcheck():
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 3, 2, 1, 2)]
    torch.autograd.gradcheck(
        lambda q, k, v: decode_attention(q, k, v, torch.tensor([3, 2])), tensors
    )


def test_bfloat16_is_as_good_as_plain_bfloat16():
    lengths = torch.tensor([1, 64, 40, 33])

    def plain(q, k_cache, v_cache):
        mask = (torch.arange(64) < lengths[:, None])[:, None, None]
        k, v = (tensor.repeat_interleave(3, 2).transpose(1, 2) for tensor in (k_cache, v_cache))
        return F.scaled_dot_product_attention(q[:, :, None], k, v, mask)[:, :, 0]

    assert_as_good_as_plain(
        lambda q, k, v: decode_attention(q, k, v, lengths),
        plain,
        *inputs(slots=64, head_dim=16),
    )


def test_compiled_equals_eager():
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    tensors = inputs(dtype=torch.float32)
    assert torch.equal(compiled(*tensors, LENGTHS), decode_attention(*tensors, LENGTHS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(4, 6)}, r"q: .*got \[4, 6\]"),
        ({"k_cache": torch.ones(3, 7, 2, 5)}, r"k_cache: .*\[4, any, any, 5\], got \[3, 7, 2, 5\]"),
        ({"v_cache": torch.ones(4, 6, 2, 5)}, r"v_cache: .*\[4, 7, 2, 5\], got \[4, 6, 2, 5\]"),
        ({"q": torch.ones(4, 5, 5)}, "q: .*multiple of the 2 key heads, got 5"),
        ({"v_cache": torch.ones(4, 7, 2, 5).half()}, "v_cache: .*float32.*got torch.float16"),
        ({"lengths": LENGTHS.float()}, "lengths: expected torch.int32 or.*got torch.float32"),
        ({"lengths": LENGTHS[:3]}, r"lengths: .*\[4\], got \[3\]"),
        ({"lengths": [1, 2, 3, 4]}, "lengths: expected a tensor, got list"),
        ({"lengths": torch.tensor([1, 8, 2, 3])}, "lengths: expected 0 to 7, got 8"),
        ({"lengths": torch.tensor([1, 2, -1, 3])}, "lengths: expected 0 to 7, got -1"),
        ({"lengths": LENGTHS.to("meta")}, "lengths: expected device cpu, got meta"),
        ({"impl": "cuda"}, "impl: .* takes 'auto', 'triton', 'cpp', 'torch', got 'cuda'"),
        ({"scale": -1.0}, "scale: expected a positive number, got -1.0"),
    ],
)
def test_refuses(change, words):
    q, k_cache, v_cache = inputs(dtype=torch.float32)
    arguments = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "lengths": LENGTHS} | change
    with pytest.raises(ValueError, match=words):
        decode_attention(**arguments)
