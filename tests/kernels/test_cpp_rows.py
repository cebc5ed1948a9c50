"""What stands between the matrix products of a layer on a CPU, in C++, beside float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies

from metamorph_kernels import (
    cpp_absence,
    rms_norm_cpp,
    rotate_cpp,
    runs_in_cpp,
    store_cpp,
    swiglu_cpp,
)

ABSENCE = cpp_absence("cpu")
pytestmark = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))
tokens = strategies.sampled_from([0, 1, 3, 17, 600])
columns = strategies.sampled_from([1, 2, 5, 16, 33, 192])
close = {"rtol": 1e-6, "atol": 1e-6}


def normal(*shape):
    """float32, out of a wider tensor: rows lie apart."""
    *outer, last = shape
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*outer, last + 3, generator=generator).mul_(3)[..., :last]


def dense_heads(count, heads, head_dim):
    """[count, heads, head_dim], dense within a token, as the view of a projection is."""
    return normal(count, heads * head_dim).unflatten(1, (heads, head_dim))


def test_they_are_for_float32_on_a_cpu_without_gradients():
    x = torch.ones(2, 3)
    assert not runs_in_cpp(x)
    with torch.no_grad():
        assert runs_in_cpp(x)
        assert not runs_in_cpp(x.bfloat16()) and not runs_in_cpp(x.to("meta"))


@given(tokens, columns, strategies.sampled_from([1e-5, 1e-2]))
def test_rms_norm(count, width, eps):
    x, weight = normal(count, width), normal(1, width)[0]
    exact = F.rms_norm(x.double(), (width,), weight.double(), eps)
    torch.testing.assert_close(rms_norm_cpp(x, weight, eps).double(), exact, rtol=1e-6, atol=1e-5)


def test_rms_norm_of_zeros_and_nan():
    x = torch.zeros(2, 17)
    x[1, 16] = math.nan
    out = rms_norm_cpp(x, torch.ones(17), 1e-5)
    assert out[0].eq(0).all() and out[1].isnan().all()


@given(tokens, columns)
def test_swiglu(count, width):
    gate_up = 10 * normal(count, 2 * width)
    gate, up = gate_up.double().chunk(2, dim=-1)
    torch.testing.assert_close(swiglu_cpp(gate_up).double(), F.silu(gate) * up, **close)


def test_swiglu_at_the_ends_of_float32():
    gate = torch.tensor([0.0, 1e30, -1e30, -88.0, 88.0, math.inf, math.nan])
    out = swiglu_cpp(torch.cat([gate, torch.ones(7)])[None])[0]
    torch.testing.assert_close(out, F.silu(gate), equal_nan=True)


@given(tokens, strategies.sampled_from([(1, 1), (5, 3), (8, 8)]), columns)
def test_rotate(count, heads, half):
    all_heads, rotated = heads
    x = dense_heads(count, all_heads, 2 * half)
    cos, sin = (normal(count, 2, 2 * half)[:, i : i + 1] for i in range(2))
    a, c, s = (tensor.double() for tensor in (x[:, :rotated], cos, sin))
    exact = a * c + a.roll(half, dims=-1) * s
    out = rotate_cpp(x, cos, sin, rotated)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_store_is_index_put(dtype):
    keys, values = (normal(3, 2, 9, 8).to(dtype).transpose(1, 2) for _ in range(2))
    k, v = (dense_heads(5, 6, 8).to(dtype)[:, i : i + 2] for i in (0, 4))
    places = torch.tensor([2, 0, 2, 1, 0]), torch.tensor([8, 0, 3, 5, 1])
    expected = keys.index_put(places, k), values.index_put(places, v)
    store_cpp(keys, values, *places, k, v)
    assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])


def test_what_does_not_fit_is_found_before_anything_is_stored():
    keys, narrow = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 7)
    place, rows = torch.tensor([0]), torch.ones(1, 2, 8)
    with pytest.raises(RuntimeError, match="v: expected .N, 2, 7. as values has"):
        store_cpp(keys, narrow, place, place, rows, rows)
    assert not keys.any()


def test_opcheck():
    ops, check = torch.ops.metamorph_cpu_ops, torch.library.opcheck
    x, table, places = dense_heads(4, 3, 6), normal(4, 1, 6), torch.arange(4)
    check(ops.rms_norm.default, (normal(4, 6), torch.ones(6), 1e-5))
    check(ops.swiglu.default, (normal(4, 6),))
    check(ops.rotate.default, (x, table, table, 2))
    check(ops.store.default, (normal(4, 5, 3, 6), normal(4, 5, 3, 6), places, places, x, x))


def test_refusals():
    x, table, cache = dense_heads(4, 3, 6), normal(4, 1, 6), normal(4, 5, 3, 6)
    places, far = torch.arange(4), torch.tensor([0, 1, 2, 5])
    failures = [
        ("x: expected shape .T, H., got 3", lambda: rms_norm_cpp(x, torch.ones(6), 1e-5)),
        ("weight: expected shape .6., got .5.", lambda: rms_norm_cpp(x[0], torch.ones(5), 1e-5)),
        ("gate_up: expected an even number", lambda: swiglu_cpp(normal(2, 5))),
        ("gate_up: expected Float, got Double", lambda: swiglu_cpp(normal(2, 6).double())),
        ("gate_up: expected neighbouring", lambda: swiglu_cpp(normal(6, 2).t())),
        ("heads: expected 0 to 3, got 4", lambda: rotate_cpp(x, table, table, 4)),
        ("cos: expected shape .4, 1, 6.", lambda: rotate_cpp(x, table[:3], table, 2)),
        ("even number of columns, got 5", lambda: rotate_cpp(normal(4, 1, 5), table, table, 1)),
        ("neighbouring heads", lambda: rotate_cpp(normal(4, 3, 6), table, table, 2)),
        ("places: expected 0 to 4, got 5", lambda: store_cpp(cache, cache, places, far, x, x)),
        ("sequences: .*got -1", lambda: store_cpp(cache, cache, places - 1, places, x, x)),
        ("k: .*as keys has", lambda: store_cpp(cache, cache, places, places, x[:, :2], x)),
        ("v: expected 4 rows", lambda: store_cpp(cache, cache, places, places, x, x[:2])),
    ]
    for words, call in failures:
        with pytest.raises(RuntimeError, match=words):
            call()
