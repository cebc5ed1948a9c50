import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings

from metamorph_kernels import (
    interval_attention,
    interval_attention_fp8,
    intervals_from_rows,
    key_intervals,
    reference,
)
from metamorph_kernels.attention import fp8
from metamorph_kernels.attention.fp8 import quantise_heads
from tests.kernels.comparisons import Record
from tests.kernels.packed_rows import non_decreasing_rows


def rows(tokens, query_heads=4, key_heads=2, head_dim=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, heads, head_dim, generator=generator).to(dtype)
        for heads in (query_heads, key_heads, key_heads)
    ]


def exact(q, k, v, intervals):
    return interval_attention(q.double(), k.double(), v.double(), intervals)


def relative_error(out, truth):
    """Root of the mean squared error over that of the truth."""
    return ((out.double() - truth).norm() / truth.norm()).item()


def assert_equal_but_for_one_weight(ours, expected, v, rtol=1e-5, atol=1e-5):
    """Once in a million, a weight at the middle of two float8 numbers falls to the other side.

    Those are at most 1/8 of the weight apart, and so the results of its query 1/8 of what v holds.
    """
    difference = (ours - expected).abs()
    off = (difference > rtol * expected.abs() + atol).any(-1)  # [T, Hq]
    assert off.sum() <= 1 and difference.max() <= v.abs().max() / 8, difference.max()


@settings(max_examples=40, deadline=None)
@given(non_decreasing_rows())
def test_equals_the_oracle_on_any_intervals(bounds):
    intervals = intervals_from_rows(*(torch.tensor(bound) for bound in bounds))
    tensors = rows(len(bounds[0]))
    ours = interval_attention_fp8(*tensors, intervals, scale=0.9)
    oracle = reference.interval_attention_fp8(*tensors, intervals, scale=0.9)
    assert_equal_but_for_one_weight(ours, oracle, tensors[2])


@pytest.mark.parametrize(
    ("query_heads", "key_heads", "head_dim"), [(1, 1, 1), (6, 6, 5), (6, 2, 80), (5, 1, 33)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_heads_odd_shapes_and_dtypes(query_heads, key_heads, head_dim, dtype):
    intervals = key_intervals([1, 6, 13, 6], [(2, 5), (8, 12), (14, 20)])
    tensors = rows(26, query_heads, key_heads, head_dim, dtype)
    ours = interval_attention_fp8(*tensors, intervals)
    oracle = reference.interval_attention_fp8(*tensors, intervals)
    assert ours.dtype == dtype and ours.shape == tensors[0].shape
    step = torch.finfo(dtype).eps
    assert_equal_but_for_one_weight(ours, oracle, tensors[2], rtol=max(1e-5, step))
    assert relative_error(ours, exact(*tensors, intervals)) > 1e-3  # float8 it is


def test_long_documents_go_in_chunks_of_queries(monkeypatch):
    intervals = key_intervals([30, 30, 20], [(32, 50)])
    tensors = rows(80)
    whole = interval_attention_fp8(*tensors, intervals)
    monkeypatch.setattr(fp8, "QUERIES_AT_ONCE", 7)
    with Record() as record:
        chunked = interval_attention_fp8(*tensors, intervals)
    assert_equal_but_for_one_weight(whole, chunked, tensors[2])
    assert record.elements <= 80 * 4 * 8  # the queries; scores of a document would be 3,600


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("spans", "measured"), [([], 0.050), ([(0, 512)], 0.054)])
def test_error_on_normal_data(head_dim, spans, measured):
    intervals = key_intervals([512], spans)
    q, k, v = rows(512, 8, 2, head_dim)
    error = relative_error(interval_attention_fp8(q, k, v, intervals), exact(q, k, v, intervals))
    assert error < 1.1 * measured


def test_many_small_weights_beside_a_large_one_count():
    q, k, v = rows(2048, 2, 1, 64)
    q, k, v = 0.3 * q, 0.3 * k, v + 0.5
    q[:, :, 0], k[:, :, 0] = 1, 0
    k[0, :, 0] = 64  # all queries score the first token 8 above the others
    intervals = key_intervals([2048])
    error = relative_error(interval_attention_fp8(q, k, v, intervals), exact(q, k, v, intervals))
    assert error < 0.055  # 0.045 measured; with weights up to 1 it was 0.15


def test_an_outlier_head_does_not_disturb_the_others():
    intervals = key_intervals([40, 24])
    q, k, v = rows(64, 4, 4, 64)
    before = interval_attention_fp8(q, k, v, intervals)
    for tensor in (q, k, v):
        tensor[:, 2] *= 1000
    after = interval_attention_fp8(q, k, v, intervals)
    others = [0, 1, 3]
    assert torch.equal(after[:, others], before[:, others])
    assert after.isfinite().all() and not torch.equal(after[:, 2], before[:, 2])


def test_zeros_give_zeros_and_the_mean():
    intervals = key_intervals([5])
    q, k, v = rows(5)
    zero = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    assert interval_attention_fp8(*zero, intervals).eq(0).all()
    kept = quantise_heads(v)[0].float() * quantise_heads(v)[1][:, None]
    mean = kept.cumsum(0) / torch.arange(1, 6)[:, None, None]
    out = interval_attention_fp8(zero[0], k, v, intervals)
    torch.testing.assert_close(out, mean.repeat_interleave(2, 1))


def test_nothing_hidden_is_seen():
    intervals = key_intervals([4, 5])
    q, k, v = rows(9)
    before = interval_attention_fp8(q, k, v, intervals)
    k[3], v[3] = k[3].flip(-1), v[3].flip(-1)  # the scales of the heads stay
    after = interval_attention_fp8(q, k, v, intervals)
    assert torch.equal(after[:3], before[:3]) and torch.equal(after[4:], before[4:])
    assert not torch.equal(after[3], before[3])


def test_a_bad_number_stays_in_its_document():
    intervals = key_intervals([4, 5])
    q, k, v = rows(9)
    clean = interval_attention_fp8(q, k, v, intervals)
    for tensor in (k, v):
        for bad in (math.nan, math.inf):
            kept, tensor[6, 0, 0] = tensor[6, 0, 0].item(), bad
            out = interval_attention_fp8(q, k, v, intervals)
            assert out[6:, :2, 0].isnan().all()
            tensor[6, 0, 0] = kept
            torch.testing.assert_close(out[:4], clean[:4], rtol=0.1, atol=0.1)  # other scales


def test_quantise_heads():
    x = torch.tensor([[[1.02, -2.05], [0.0, 0.0]], [[4.48, 0.001], [0.0, 0.0]]])
    rounded, scale = quantise_heads(x)
    assert rounded.dtype == torch.float8_e4m3fn and rounded.shape == x.shape
    torch.testing.assert_close(scale, torch.tensor([0.01, 1.0]))
    assert rounded.float().tolist() == [[[104, -208], [0, 0]], [[448, 0.1015625], [0, 0]]]
    for largest in (1e-30, 0.3, 448.0, 1e30, 7e-43):  # the last has a scale of one subnormal step
        assert quantise_heads(torch.full((1, 1, 1), largest))[0].float() == 448
    smallest = torch.full((1, 1, 1), 1e-45)  # its scale underflows to 0
    assert quantise_heads(smallest)[0].float() == 0

    for bad in (math.nan, math.inf, -math.inf):  # is one NaN, and changes no other number
        x[0, 0, 0] = bad
        again, scale = quantise_heads(x)
        assert again[0, 0, 0].isnan() and scale.tolist() == pytest.approx([0.01, 1.0])
        assert torch.equal(again.float().flatten()[1:], rounded.float().flatten()[1:])
    with pytest.raises(ValueError, match=r"x: expected shape \[T, H, D\].*got \[3\]"):
        quantise_heads(torch.ones(3))
    with pytest.raises(ValueError, match="x: expected float64.*got torch.int64"):
        quantise_heads(torch.ones(1, 1, 1, dtype=torch.int64))


def test_compiled_equals_eager():
    compiled = torch.compile(interval_attention_fp8, fullgraph=True, backend="aot_eager")
    intervals = key_intervals([3, 5, 3], [(4, 6)])
    tensors = rows(11)
    assert torch.equal(compiled(*tensors, intervals), interval_attention_fp8(*tensors, intervals))


def test_follows_autocast():
    q, k, v = rows(5)
    with torch.autocast("cpu", torch.bfloat16):
        out = interval_attention_fp8(q, k.bfloat16(), v, key_intervals([5]))
    half = (tensor.bfloat16() for tensor in (q, k, v))
    assert torch.equal(out, interval_attention_fp8(*half, key_intervals([5])))


def test_forward_only():
    intervals = key_intervals([5])
    for index, name in enumerate("qkv"):
        tensors = rows(5)
        tensors[index].requires_grad_()
        with pytest.raises(ValueError, match=f"{name}: .*forward only.*requires grad"):
            interval_attention_fp8(*tensors, intervals)
        with torch.no_grad():
            out = interval_attention_fp8(*tensors, intervals)
        with torch.inference_mode():
            assert torch.equal(interval_attention_fp8(*tensors, intervals), out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.ones(4, 2, 8)}, r"k: .*\[5, any, 8\], got \[4, 2, 8\]"),
        ({"q": torch.ones(5, 3, 8)}, "q: .*multiple of the 2 key heads, got 3"),
        (
            {name: torch.ones(5, 2, 8).double() for name in "qkv"},
            "q: expected float32, bfloat16 or float16, got torch.float64",
        ),
        ({"intervals": None}, "intervals: expected Intervals, got NoneType"),
        (
            {"impl": "triton"},
            "impl: interval_attention_fp8 cannot run in Triton here: "
            "CPU tensors need TRITON_INTERPRET=1",
        ),
        ({"impl": "numpy"}, "impl: interval_attention_fp8 takes 'auto', 'triton', 'torch'"),
    ],
)
def test_refuses(change, words):
    q, k, v = rows(5)
    arguments = {"q": q, "k": k, "v": v, "intervals": key_intervals([5])} | change
    with pytest.raises(ValueError, match=words):
        interval_attention_fp8(**arguments)


def test_what_triton_gets_and_what_keeps_a_call_from_it(monkeypatch):
    seen = []

    def resolve(operation, impl, tensor, triton_limit):
        seen.append((operation, impl, triton_limit))
        return "triton" if triton_limit is None else "torch"

    def interval_attention_fp8_triton(q, k, v, intervals, scale):
        seen.append(scale)
        return q + 1

    module = types.ModuleType("metamorph_kernels.attention.fp8_triton")
    module.interval_attention_fp8_triton = interval_attention_fp8_triton
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fp8, "resolve", resolve)
    q, k, v = rows(3, head_dim=96)
    assert torch.equal(interval_attention_fp8(q, k, v, key_intervals([3])), q + 1)
    assert seen == [("interval_attention_fp8", "auto", None), 1 / math.sqrt(96)]
    interval_attention_fp8(*rows(3, head_dim=72), key_intervals([3]))
    assert seen[-1][2] == "head dimensions 64, 80, 96 and 128 only, got 72"
