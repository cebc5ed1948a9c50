"""Decoding attention in C++ on a CPU, beside float64 and PyTorch."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies

from metamorph_kernels import cpp_absence, cpu_library, decode_attention, reference
from metamorph_kernels.attention.decode import decode_attention_on_host
from tests.kernels.comparisons import Record, assert_as_close_as_plain

ABSENCE = cpp_absence("cpu")
needs_library = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
LENGTHS = torch.tensor([21, 0, 70])


def ours(*tensors, **options):
    return decode_attention(*tensors, impl="cpp", **options)


def inputs(batch=3, slots=70, query_heads=6, key_heads=2, head_dim=32, dtype=torch.float32):
    """q [B, Hq, D] out of a wider projection, and caches with the slots of a head together."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, query_heads + 3, head_dim, generator=generator)[:, 2:-1]
    caches = torch.randn(2, batch, key_heads, slots + 1, head_dim, generator=generator)[..., :-1, :]
    return [tensor.to(dtype) for tensor in (q, *caches.transpose(2, 3))]


def poison(lengths, *caches):
    for cache in caches:
        for row, length in enumerate(lengths):
            cache[row, length:] = math.nan


@needs_library
@settings(max_examples=40)
@given(
    strategies.sampled_from([(1, 1), (2, 1), (6, 2), (4, 4), (5, 1), (9, 1), (20, 4)]),
    strategies.sampled_from([1, 3, 4, 16, 17, 31, 32, 33, 64, 80, 96, 128, 130]),
    strategies.lists(strategies.integers(0, 200), min_size=1, max_size=4),
    strategies.sampled_from(list(TOLERANCE)),
    strategies.sampled_from([torch.int32, torch.int64]),
    strategies.sampled_from([None, 0.3, 3.0]),
)
def test_any_shape_against_float64(heads, head_dim, lengths, dtype, integers, scale):
    tensors = inputs(len(lengths), max(lengths) + 2, *heads, head_dim, dtype)
    counts = torch.tensor(lengths, dtype=integers)
    exact = reference.decode_attention(*(x.double() for x in tensors), counts, scale=scale)
    plain = decode_attention(*tensors, counts, scale=scale, impl="torch")
    poison(lengths, *tensors[1:])
    out = ours(*tensors, counts, scale=scale)
    assert out.dtype == dtype and out.is_contiguous()
    assert_as_close_as_plain(out, plain, exact, TOLERANCE[dtype], f"{head_dim=} {lengths=}")
    assert not out[counts == 0].any()


@needs_library
def test_auto_takes_it_and_so_does_the_unchecked_one():
    tensors = inputs()
    expected = ours(*tensors, LENGTHS)
    assert torch.equal(decode_attention(*tensors, LENGTHS), expected)
    unchecked = decode_attention_on_host(LENGTHS, LENGTHS.tolist(), 1 / math.sqrt(32))
    assert torch.equal(unchecked(*tensors), expected)


def test_where_it_is_not_built_pytorch_computes(monkeypatch):
    monkeypatch.setattr(cpu_library, "_load", lambda: "not built")
    tensors = inputs()
    by_torch = decode_attention(*tensors, LENGTHS, impl="torch")
    assert torch.equal(decode_attention(*tensors, LENGTHS), by_torch)
    unchecked = decode_attention_on_host(LENGTHS, LENGTHS.tolist(), 1 / math.sqrt(32))
    assert torch.equal(unchecked(*tensors), by_torch)
    with pytest.raises(ValueError, match=r"cannot run in C\+\+ here: not built"):
        ours(*tensors, LENGTHS)


@needs_library
def test_layouts_of_the_cache_are_the_same_to_it():
    q, keys, values = inputs()
    expected = ours(q, keys, values, LENGTHS)
    slots_first = keys.contiguous(), values.contiguous()
    assert torch.equal(ours(q.contiguous(), *slots_first, LENGTHS), expected)
    columns_apart = [cache.transpose(2, 3).contiguous().transpose(2, 3) for cache in slots_first]
    assert torch.equal(ours(q, *columns_apart, LENGTHS), expected)
    one_for_all = [cache[:1].expand(3, -1, -1, -1) for cache in slots_first]
    repeated = [cache.contiguous() for cache in one_for_all]
    assert torch.equal(ours(q, *one_for_all, LENGTHS), ours(q, *repeated, LENGTHS))


@needs_library
def test_no_cache_is_copied():
    q, keys, values = inputs(slots=400)
    with Record() as record:
        ours(q, keys, values, LENGTHS)
    assert record.elements <= q.numel()


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads):
    tensors = inputs(batch=16, slots=900)
    lengths = torch.arange(16) * 60
    expected, before = ours(*tensors, lengths), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(ours(*tensors, lengths), expected)
    finally:
        torch.set_num_threads(before)


@needs_library
def test_scores_far_apart_and_infinite():
    q, keys, values = inputs(1, 70)
    q[:], keys[:] = 1.0, 0.0
    keys[0, 69] = 1e30  # the last key alone counts, however far the others are below it
    out = ours(q, keys, values, torch.tensor([70]))
    torch.testing.assert_close(out[0, 0], values[0, 69, 0])
    keys[0, :69] = -math.inf
    torch.testing.assert_close(ours(q, keys, values, torch.tensor([70])), out)
    assert ours(q, keys, values, torch.tensor([69])).isnan().all()  # softmax of -inf alone


@needs_library
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_nan_that_is_seen_shows_in_its_head_alone(name):
    q, keys, values = inputs()
    {"q": q[2, 1], "k": keys[2, 17, 1], "v": values[2, 17, 1]}[name][3] = math.nan
    exact = reference.decode_attention(q.double(), keys.double(), values.double(), LENGTHS)
    torch.testing.assert_close(
        ours(q, keys, values, LENGTHS).double(), exact, rtol=2e-6, atol=2e-6, equal_nan=True
    )


@needs_library
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_lower_levels_of_instructions(capability):
    """PyTorch's variable, read when the library is loaded, asks for them."""
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": capability,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *LEVELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(LEVELS)} passed" in done.stdout, done.stdout


PREFILL = Path(__file__).with_name("test_cpp_prefill_attention.py")
LEVELS = (
    f"{__file__}::{test_any_shape_against_float64.__name__}",
    f"{__file__}::{test_scores_far_apart_and_infinite.__name__}",
    f"{PREFILL}::test_any_pieces_against_float64",
)


@needs_library
def test_opcheck_and_compiled():
    tensors = inputs()
    operator = torch.ops.metamorph_cpu_ops.decode_attention.default
    torch.library.opcheck(operator, (*tensors, LENGTHS, 0.2))
    with torch.inference_mode():
        compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*tensors, LENGTHS), ours(*tensors, LENGTHS))


@needs_library
def test_what_it_cannot_do_goes_to_pytorch():
    tensors = inputs()
    for other in (torch.float16, torch.float64):
        cast = [tensor.to(other) for tensor in tensors]
        by_torch = decode_attention(*cast, LENGTHS, impl="torch")
        assert torch.equal(decode_attention(*cast, LENGTHS), by_torch)
        with pytest.raises(ValueError, match=f"float32 and bfloat16 only, got {other}"):
            ours(*cast, LENGTHS)
    q, keys, values = tensors
    leaf = q.clone().requires_grad_()
    decode_attention(leaf, keys, values, LENGTHS).sum().backward()
    assert leaf.grad.isfinite().all()
    with pytest.raises(ValueError, match="its kernel has no backward"):
        ours(leaf, keys, values, LENGTHS)


@needs_library
def test_called_itself_it_checks_what_it_is_given():
    q, keys, values = inputs()
    attend = cpu_library.decode_attention_cpp
    failures = [
        ("q: expected float32 or bfloat16, got Double", (q.double(), keys, values, LENGTHS)),
        ("k_cache: expected Float, got BFloat16", (q, keys.bfloat16(), values, LENGTHS)),
        ("v_cache: expected the shape of k_cache", (q, keys, values[:, :9], LENGTHS)),
        ("k_cache: expected as many sequences as q has, 2, got 3", (q[:2], keys, values, LENGTHS)),
        ("q: .* multiple of the 2 key heads, got 5", (q[:, :5], keys, values, LENGTHS)),
        ("q: expected shape .B, Hq, D., got 2 dimensions", (q[0], keys, values, LENGTHS)),
        ("lengths: expected int32 or int64 of shape .3.", (q, keys, values, LENGTHS.float())),
        ("lengths: expected 0 to 70, got 71", (q, keys, values, LENGTHS + 1)),
        ("lengths: expected 0 to 70, got -1", (q, keys, values, LENGTHS - 1)),
    ]
    for words, arguments in failures:
        with pytest.raises(RuntimeError, match=words):
            attend(*arguments, 0.2)
