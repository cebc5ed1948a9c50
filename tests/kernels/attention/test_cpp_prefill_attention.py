"""Prefill attention in C++ on a CPU, beside float64 and PyTorch."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies

from metamorph_kernels import cpp_absence, cpu_library, prefill_attention, prefill_row, reference
from tests.kernels.cache_pieces import cache_pieces
from tests.kernels.comparisons import Record, assert_as_close_as_plain

ABSENCE = cpp_absence("cpu")
needs_library = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
SEQUENCES = 3
PIECES = [(1, 0, 150), (0, 90, 1), (2, 0, 70), (1, 150, 33)]  # several tiles and blocks
SPANS = [(20, 90), (155, 221)]


def ours(*tensors, **options):
    return prefill_attention(*tensors, impl="cpp", **options)


def inputs(row, query_heads=6, key_heads=2, head_dim=32, dtype=torch.float32):
    """q [T, Hq, D] out of a wider projection, and caches with the slots of a head together, NaN
    where no token of its sequence has been."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(row.visible), query_heads + 3, head_dim, generator=generator)[:, 2:-1]
    shape = (2, SEQUENCES, key_heads, row.key_count + 3, head_dim)
    caches = torch.randn(shape, generator=generator).transpose(2, 3)
    for sequence in range(SEQUENCES):
        ends = [start + count for number, start, count in row.pieces if number == sequence]
        caches[:, sequence, max(ends, default=0) :] = math.nan
    return [tensor.to(dtype) for tensor in (q, *caches)]


def exact(q, keys, values, row, scale=None):
    """The definition in float64, of caches without what is NaN."""
    keys, values = (cache.double().nan_to_num() for cache in (keys, values))
    return reference.prefill_attention(q.double(), keys, values, row, scale=scale)


@needs_library
@settings(max_examples=25)
@given(
    cache_pieces(longest=70, sequences=SEQUENCES),
    strategies.sampled_from([(1, 1), (6, 2), (4, 4), (5, 1), (9, 1)]),
    strategies.sampled_from([1, 3, 16, 17, 32, 64, 80, 130]),
    strategies.sampled_from(list(TOLERANCE)),
    strategies.sampled_from([None, 0.3, 3.0]),
)
def test_any_pieces_against_float64(drawn, heads, head_dim, dtype, scale):
    row = prefill_row(*drawn)
    tensors = inputs(row, *heads, head_dim, dtype)
    out = ours(*tensors, row, scale=scale)
    plain = prefill_attention(*tensors, row, scale=scale, impl="torch")
    assert out.dtype == dtype and out.is_contiguous()
    expected = exact(*tensors, row, scale)
    assert_as_close_as_plain(out, plain, expected, TOLERANCE[dtype], f"{head_dim=} {drawn=}")


@needs_library
def test_auto_takes_it_and_a_compiled_graph_holds_it():
    row = prefill_row(PIECES, SPANS)
    tensors = inputs(row)
    expected = ours(*tensors, row)
    torch.testing.assert_close(expected.double(), exact(*tensors, row), rtol=2e-6, atol=2e-6)
    assert torch.equal(prefill_attention(*tensors, row), expected)
    operator = torch.ops.metamorph_cpu_ops.prefill_attention.default
    torch.library.opcheck(operator, (*tensors, row.visible, row.blocks, 0.2))
    with torch.inference_mode():
        compiled = torch.compile(prefill_attention, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*tensors, row), expected)


def test_where_it_is_not_built_pytorch_computes(monkeypatch):
    monkeypatch.setattr(cpu_library, "_load", lambda: "not built")
    row = prefill_row(PIECES, SPANS)
    tensors = inputs(row)
    by_torch = prefill_attention(*tensors, row, impl="torch")
    assert torch.equal(prefill_attention(*tensors, row), by_torch)
    with pytest.raises(ValueError, match=r"cannot run in C\+\+ here: not built"):
        ours(*tensors, row)


@needs_library
def test_layouts_of_the_cache_are_the_same_to_it_and_none_is_copied():
    row = prefill_row(PIECES, SPANS)
    q, keys, values = inputs(row)
    with Record() as record:
        expected = ours(q, keys, values, row)
    assert record.elements <= q.numel()
    slots_first = keys.contiguous(), values.contiguous()
    assert torch.equal(ours(q.contiguous(), *slots_first, row), expected)
    columns_apart = [cache.transpose(2, 3).contiguous().transpose(2, 3) for cache in slots_first]
    assert torch.equal(ours(q, *columns_apart, row), expected)


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads):
    row = prefill_row(PIECES, SPANS)
    tensors = inputs(row)
    expected, before = ours(*tensors, row), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(ours(*tensors, row), expected)
    finally:
        torch.set_num_threads(before)


@needs_library
def test_a_token_that_sees_nothing_or_is_in_no_block_gets_zeros():
    row = prefill_row([(0, 0, 5)])
    q, keys, values = inputs(row)
    visible = torch.tensor([0, 2, 0, 4, 5], dtype=torch.int32)
    blocks = torch.tensor([[0, 0, 4], [1, 2, 2]], dtype=torch.int32)  # the second one is empty
    out = cpu_library.prefill_attention_cpp(q, keys, values, visible, blocks, 0.2)
    assert not out[[0, 2, 4]].any()
    expected = exact(q, keys, values, row, 0.2)
    torch.testing.assert_close(out[3].double(), expected[3], rtol=2e-6, atol=2e-6)


@needs_library
def test_what_it_cannot_do_goes_to_pytorch():
    row = prefill_row(PIECES, SPANS)
    tensors = inputs(row)
    for other in (torch.float16, torch.float64):
        cast = [tensor.to(other) for tensor in tensors]
        by_torch = prefill_attention(*cast, row, impl="torch")
        assert torch.equal(prefill_attention(*cast, row), by_torch)
        with pytest.raises(ValueError, match=f"float32 and bfloat16 only, got {other}"):
            ours(*cast, row)
    leaf = tensors[0].clone().requires_grad_()
    prefill_attention(leaf, *tensors[1:], row).sum().backward()
    assert leaf.grad.isfinite().all()
    with pytest.raises(ValueError, match="its kernel has no backward"):
        ours(leaf, *tensors[1:], row)


@needs_library
def test_called_itself_it_checks_what_it_is_given():
    row = prefill_row([(2, 0, 9)])
    q, keys, values = inputs(row)
    visible, blocks = row.visible, row.blocks
    failures = [
        ("q: expected float32 or bfloat16, got Double", (q.double(), keys, values)),
        ("k_cache: expected Float, got BFloat16", (q, keys.bfloat16(), values)),
        ("v_cache: expected the shape of k_cache", (q, keys, values[:, :9])),
        ("k_cache: expected as many columns as q has, 31, got 32", (q[..., 1:], keys, values)),
        ("q: .* multiple of the 2 key heads, got 5", (q[:, :5], keys, values)),
        ("q: expected shape .T, Hq, D., got 2 dimensions", (q[0], keys, values)),
        ("visible: .* int32 tensor of shape .9.", (q, keys, values, visible.long())),
        ("visible: .* int32 tensor of shape .9.", (q, keys, values, visible[1:])),
        ("visible: expected 0 to 12, got 13", (q, keys, values, visible + 4)),
        ("visible: expected 0 to 12, got -1", (q, keys, values, visible - 2)),
        ("blocks: .* int32 tensor of shape .blocks, 3.", (q, keys, values, visible, blocks[:, 1:])),
        ("blocks: expected sequences 0 to 2, got 3", (q, keys, values, visible, blocks + 1)),
        ("blocks: expected tokens of 0 to 9, got 0 to 10", (
            q, keys, values, visible, torch.tensor([[2, 0, 10]], dtype=torch.int32)
        )),
    ]  # fmt: skip
    for words, given_ones in failures:
        arguments = (*given_ones, *(visible, blocks)[len(given_ones) - 3 :])
        with pytest.raises(RuntimeError, match=words):
            cpu_library.prefill_attention_cpp(*arguments, 0.2)
