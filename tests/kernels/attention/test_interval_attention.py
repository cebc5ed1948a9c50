import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from metamorph_kernels import interval_attention, intervals_from_rows, key_intervals, reference
from metamorph_kernels.attention import interval
from tests.kernels.comparisons import Record, assert_as_good_as_plain, value_and_gradients
from tests.kernels.packed_rows import (
    brute_force_mask,
    mask_of_rows,
    non_decreasing_rows,
    packed_rows,
)


def rows(tokens, query_heads=4, key_heads=2, head_dim=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, heads, head_dim, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (query_heads, key_heads, key_heads)
    ]


def plain(q, k, v, mask, scale=None):
    """One dense masked call in the dtype of the inputs."""
    group = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(group, 1) for tensor in (k, v))
    q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(0, 1)


@settings(max_examples=40, deadline=None)
@given(packed_rows())
def test_equals_brute_force_forward_and_backward(row):
    lengths, spans = row
    intervals = key_intervals(lengths, spans)
    mask = brute_force_mask(lengths, spans)
    tensors = rows(sum(lengths))
    ours = value_and_gradients(lambda q, k, v: interval_attention(q, k, v, intervals), *tensors)
    oracle = value_and_gradients(
        lambda q, k, v: reference.interval_attention(q, k, v, intervals), *tensors
    )
    dense = value_and_gradients(lambda q, k, v: plain(q, k, v, mask), *tensors)
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(non_decreasing_rows())
def test_any_intervals_equal_brute_force_with_both_outputs(bounds):
    intervals = intervals_from_rows(*(torch.tensor(bound) for bound in bounds))
    tensors = rows(len(bounds[0]))
    mask = mask_of_rows(*bounds)

    def by_definition(q, k, v):
        scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, 1)) * 0.7
        lse = torch.log((scores.exp() * mask).sum(-1))
        weights = (scores - lse[..., None]).exp() * mask
        return torch.einsum("hij,jhd->ihd", weights, v.repeat_interleave(2, 1)), lse

    def both(attend, **more):
        def joined(q, k, v):
            out, lse = attend(q, k, v, **more)
            assert out.shape == q.shape and lse.shape == (q.shape[1], q.shape[0])
            return torch.cat([out.flatten(), lse.flatten()])

        return value_and_gradients(joined, *tensors)

    ours = both(interval_attention, intervals=intervals, scale=0.7, return_lse=True)
    oracle = both(reference.interval_attention, intervals=intervals, scale=0.7, return_lse=True)
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours, both(by_definition), rtol=1e-9, atol=1e-11)
    without = interval_attention(*tensors, intervals, scale=0.7)
    torch.testing.assert_close(without.flatten(), ours[0][: without.numel()], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("query_heads", "key_heads", "head_dim", "scale"),
    [(1, 1, 1, None), (6, 6, 5, 0.3), (6, 2, 8, None), (6, 3, 7, 1.7), (5, 1, 16, None)],
)
def test_heads_and_scales(query_heads, key_heads, head_dim, scale):
    lengths, spans = [1, 6, 13, 6], [(2, 5), (8, 12), (14, 20)]
    intervals = key_intervals(lengths, spans)
    tensors = rows(26, query_heads, key_heads, head_dim)
    ours, oracle = (
        value_and_gradients(lambda q, k, v, f=f: f(q, k, v, intervals, scale=scale), *tensors)
        for f in (interval_attention, reference.interval_attention)
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-11)


def test_gradcheck():
    intervals = key_intervals([2, 5, 2], [(3, 6)])
    tensors = [tensor.requires_grad_() for tensor in rows(9)]
    torch.autograd.gradcheck(lambda q, k, v: interval_attention(q, k, v, intervals), tensors)


def test_gradcheck_through_lse():
    intervals = key_intervals([2, 3, 2], [(3, 5)])
    tensors = [tensor.requires_grad_() for tensor in rows(7, 2, 1, 2)]
    torch.autograd.gradcheck(
        lambda q, k, v: interval_attention(q, k, v, intervals, return_lse=True), tensors
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lse_is_float32_and_made_only_when_asked(dtype):
    intervals = key_intervals([20] * 30, [(2, 9)])
    tensors = rows(600, 4, 2, 4, dtype)
    out, lse = interval_attention(*tensors, intervals, return_lse=True)
    assert out.dtype == dtype and lse.dtype == torch.float32 and lse.is_contiguous()
    exact = reference.interval_attention(
        *(tensor.double() for tensor in tensors), intervals, return_lse=True
    )[1]
    torch.testing.assert_close(lse.double(), exact, rtol=1e-5, atol=1e-5)
    with Record() as record:
        interval_attention(*tensors, intervals)
    assert record.elements <= 600 * 4 * 4  # the queries; scores would be 48,000


def test_lse_under_autocast_is_that_of_the_cast_tensors():
    tensors = rows(9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        _, lse = interval_attention(*tensors, key_intervals([9]), return_lse=True)
    cast = [tensor.bfloat16() for tensor in tensors]
    _, expected = interval_attention(*cast, key_intervals([9]), return_lse=True)
    assert torch.equal(lse, expected)


def test_neighbouring_documents_of_one_length_are_one_call(monkeypatch):
    calls = []
    attend = F.scaled_dot_product_attention

    def counted(query, *arguments, **keywords):
        calls.append(tuple(query.shape))
        return attend(query, *arguments, **keywords)

    monkeypatch.setattr(interval.F, "scaled_dot_product_attention", counted)
    lengths, spans = [1] * 50 + [6] + [1] * 50 + [6, 6], [(108, 110)]
    intervals = key_intervals(lengths, spans)
    tensors = rows(sum(lengths))
    out = interval_attention(*tensors, intervals)
    assert calls == [(100, 4, 1, 3), (2, 4, 6, 3), (1, 4, 6, 3)]
    assert interval._alike(intervals)[0] == [50, 6, 50, 6, 6]  # and cut in few places
    torch.testing.assert_close(out, plain(*tensors, brute_force_mask(lengths, spans)))


def test_documents_longer_than_a_batch(monkeypatch):
    monkeypatch.setattr(interval, "LONGEST_BATCHED_DOCUMENT", 4)
    lengths, spans = [4, 6, 4, 6, 6], [(5, 9), (14, 18)]
    intervals = key_intervals(lengths, spans)
    tensors = rows(26)
    ours = interval_attention(*tensors, intervals)
    torch.testing.assert_close(ours, plain(*tensors, brute_force_mask(lengths, spans)))

    lengths = [60] * 10
    spans = [(60 * index, 60 * index + 30) for index in range(10)]
    with Record() as record:
        interval_attention(*rows(600, 2, 1, 4), key_intervals(lengths, spans))
    assert record.elements <= 600 * 2 * 4  # the queries; ten masks would be 36,000


def test_nothing_crosses_documents_or_comes_back_in_time():
    lengths, spans = [4, 5, 4], [(5, 7)]
    intervals = key_intervals(lengths, spans)
    q, k, v = rows(13)
    before = interval_attention(q, k, v, intervals)
    k[4:9], v[4:9] = math.nan, math.nan
    after = interval_attention(q, k, v, intervals)
    assert torch.equal(after[:4], before[:4]) and torch.equal(after[9:], before[9:])
    q, k, v = rows(13)
    k[7], v[7] = math.inf, math.nan  # the token after the span
    after = interval_attention(q, k, v, intervals)
    assert torch.allclose(after[:4], before[:4]) and torch.allclose(after[9:], before[9:])
    k, v = rows(13)[1:]
    k[7], v[7] = 50.0, -50.0
    after = interval_attention(q, k, v, intervals)
    assert torch.allclose(after[4:7], before[4:7]) and not torch.allclose(after[7], before[7])


def test_never_builds_a_mask_of_the_whole_row():
    lengths = [20] * 30
    spans = [(20 * index + 2, 20 * index + 9) for index in range(0, 30, 3)]
    tensors = [tensor.requires_grad_() for tensor in rows(600, 2, 1, 4, torch.float32)]
    with Record() as record:
        interval_attention(*tensors, key_intervals(lengths, spans)).sum().backward()
    assert record.elements <= 20 * 600


def test_bfloat16_is_as_good_as_dense_bfloat16():
    lengths, spans = [5, 40, 19, 40], [(6, 30), (46, 60)]
    intervals, mask = key_intervals(lengths, spans), brute_force_mask(lengths, spans)
    assert_as_good_as_plain(
        lambda q, k, v: interval_attention(q, k, v, intervals),
        lambda q, k, v: plain(q, k, v, mask),
        *rows(104, 6, 2, 16),
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_short_documents_in_bfloat16_learn_as_in_float32(autocast):
    intervals = key_intervals([7, 30, 30], [(8, 16)])
    given = [tensor.bfloat16() for tensor in rows(67, head_dim=8)]

    def attend(*tensors):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return interval_attention(*tensors, intervals, impl="torch")

    exact = value_and_gradients(
        lambda *tensors: interval_attention(*tensors, intervals, impl="torch").bfloat16(),
        *(tensor.float() for tensor in given),
    )
    for ours, best in zip(value_and_gradients(attend, *given), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, best.bfloat16(), rtol=2**-8, atol=1e-5)


def test_compiled_equals_eager():
    compiled = torch.compile(interval_attention, fullgraph=True, backend="aot_eager")
    tensors = rows(11, dtype=torch.float32)
    for lengths, spans in (([3, 5, 3], [(4, 6)]), ([11], [])):
        intervals = key_intervals(lengths, spans)
        eager, traced = (
            value_and_gradients(lambda q, k, v, f=f, i=intervals: f(q, k, v, i), *tensors)
            for f in (interval_attention, compiled)
        )
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)
        eager, traced = (
            f(*tensors, intervals, return_lse=True)[1] for f in (interval_attention, compiled)
        )
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)


def test_follows_autocast():
    q, k, v = rows(5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = interval_attention(q, k.bfloat16(), v, key_intervals([5]))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.ones(5, 4)}, r"q: .*\[T, Hq, D\].*got \[5, 4\]"),
        ({"k": torch.ones(4, 2, 3)}, r"k: .*\[5, any, 3\], got \[4, 2, 3\]"),
        ({"v": torch.ones(5, 1, 3)}, r"v: .*\[5, 2, 3\], got \[5, 1, 3\]"),
        ({"q": torch.ones(5, 3, 3)}, "q: .*multiple of the 2 key heads, got 3"),
        ({"k": torch.ones(5, 2, 3).double()}, "k: expected torch.float32.*got torch.float64"),
        ({"q": torch.ones(5, 4, 3, dtype=torch.int64)}, "q: expected float64.*got torch.int64"),
        ({"v": torch.ones(5, 2, 3, device="meta")}, "v: expected device cpu.*got meta"),
        ({"q": [1.0]}, "q: expected a tensor, got list"),
        ({"intervals": key_intervals([4])}, r"intervals: expected shape \[T\] = \[5\], got \[4\]"),
        ({"intervals": key_intervals([5], device="meta")}, "intervals: .*device cpu, got meta"),
        ({"intervals": None}, "intervals: expected Intervals, got NoneType"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"scale": math.nan}, "scale: expected a positive number, got nan"),
        (
            {"impl": "triton"},
            "impl: interval_attention cannot run in Triton here: "
            "CPU tensors need TRITON_INTERPRET=1",
        ),
        (
            {"impl": "cuda"},
            "impl: interval_attention takes 'auto', 'triton', 'torch', 'gluon', got 'cuda'",
        ),
    ],
)
def test_refuses(change, words):
    q, k, v = rows(5, dtype=torch.float32)
    arguments = {"q": q, "k": k, "v": v, "intervals": key_intervals([5])} | change
    with pytest.raises(ValueError, match=words):
        interval_attention(**arguments)


def test_what_kernels_get_and_what_keeps_a_call_from_them(monkeypatch):
    seen = []

    def resolve(operation, impl, tensor, triton_limit, *, gluon_limit):
        seen.append((operation, impl, triton_limit, gluon_limit))
        if impl == "gluon" and gluon_limit is None:
            return "gluon"
        return "triton" if triton_limit is None else "torch"

    def interval_attention_triton(q, k, v, intervals, scale, in_gluon):
        seen.append((scale, in_gluon))
        return q + 1, q.new_zeros(q.shape[1], q.shape[0])

    module = types.ModuleType("metamorph_kernels.attention.interval_triton")
    module.interval_attention_triton = interval_attention_triton
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(interval, "resolve", resolve)
    intervals = key_intervals([3])
    for head_dim in interval.TRITON_HEAD_DIMS:
        q, k, v = rows(3, head_dim=head_dim, dtype=torch.float32)
        assert torch.equal(interval_attention(q, k, v, intervals), q + 1)
        assert seen[-2][:3] == ("interval_attention", "auto", None)
        assert seen[-1] == (1 / math.sqrt(head_dim), False)
    out, lse = interval_attention(q, k, v, intervals, scale=2, impl="triton", return_lse=True)
    assert lse.shape == (4, 3) and seen[-1] == (2.0, False) and isinstance(seen[-1][0], float)
    interval_attention(*rows(3, head_dim=64, dtype=torch.bfloat16), intervals, impl="gluon")
    assert seen[-1] == (1 / 8, True)

    interval_attention(*rows(3, head_dim=80, dtype=torch.bfloat16), intervals)
    assert seen[-2][3] == "head dimensions 64 and 128 only, got 80"
    interval_attention(*rows(3, head_dim=64, dtype=torch.float32), intervals)
    assert seen[-2][3] == "bfloat16 and float16 only, got float32"
    interval_attention(*rows(3, head_dim=72, dtype=torch.float32), intervals)
    assert seen[-1][2] == "head dimensions 64, 80, 96 and 128 only, got 72"
    interval_attention(*rows(3, head_dim=64), intervals)
    assert seen[-1][2] == "float64 runs in PyTorch only"
