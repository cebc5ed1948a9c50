import pytest
import torch

from metamorph_kernels import interval_attention_fp8, key_intervals, reference
from metamorph_kernels.attention import fp8_triton, interval_triton
from tests.kernels.conftest import INTERPRETED
from tests.kernels.random_rows import random_heads, random_row

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
LONGEST, MOST = (14, 4) if INTERPRETED else (700, 6)

pytestmark = pytest.mark.usefixtures("poisoned", "tiles", "exact_float8")


@pytest.fixture
def tiles(monkeypatch):
    if INTERPRETED:
        small = interval_triton.Tiles(16, 16, num_warps=4, num_stages=1)
        table = dict.fromkeys(fp8_triton.TILES, small)
        monkeypatch.setattr(fp8_triton, "TILES", table)


def ours(q, k, v, intervals, **options):
    return interval_attention_fp8(q, k, v, intervals, impl="triton", **options)


@pytest.mark.parametrize("seed", range(24))
def test_random_packings_against_the_definition(device, seed):
    lengths, spans = random_row(seed, LONGEST, MOST)
    head_dim, group, key_heads = (
        (64, 80, 96, 128)[seed % 4],
        (1, 2, 4, 8, 3)[seed % 5],
        1 + seed % 2,
    )
    dtype = DTYPES[seed % 2]
    tensors = random_heads(
        sum(lengths), group * key_heads, key_heads, head_dim, dtype, device, seed
    )
    intervals = key_intervals(lengths, spans, device=device)
    scale = (None, 0.3)[seed // 2 % 2]
    out = ours(*tensors, intervals, scale=scale)
    expected = reference.interval_attention_fp8(*tensors, intervals, scale=scale)
    assert out.dtype == dtype and out.shape == tensors[0].shape
    # A weight at the middle of two float8 numbers may fall to either side.
    difference = (out.double() - expected.double()).norm() / expected.double().norm()
    assert difference <= 0.005, (difference, lengths, spans)


def test_many_small_weights_beside_a_large_one_do_not_vanish(device):
    """Each is exp(-8) of the largest, below what float8 holds of numbers up to 1."""
    q, k, v = (torch.zeros(64, 1, 64, dtype=DTYPES[0], device=device) for _ in range(3))
    q[:, :, 0], k[0, :, 0], v[1:] = 8.0, 8.0, 1.0
    out = ours(q, k, v, key_intervals([64], [(0, 64)], device=device))
    small = torch.tensor(-8.0).exp()
    expected = (63 * small / (1 + 63 * small)).expand(64, 1, 64).to(device, out.dtype)
    torch.testing.assert_close(out, expected, rtol=0.07, atol=0)


def test_heads_of_very_different_size_keep_their_precision(device):
    q, k, v = random_heads(30, 4, 2, 64, DTYPES[0], device)
    intervals = key_intervals([13, 17], [(2, 6)], device=device)
    small = ours(q, k, v, intervals)
    larger = torch.tensor([1.0, 256.0], device=device, dtype=v.dtype)[:, None]
    large = ours(q, k, v * larger, intervals)
    assert torch.equal(large[:, :2], small[:, :2])
    torch.testing.assert_close(large[:, 2:], small[:, 2:] * 256)


def test_operator_checks(device):
    intervals = key_intervals([9, 12], [(2, 6)], device=device)
    tensors = random_heads(21, 2, 1, 64, DTYPES[1], device)
    operator = torch.ops.metamorph_kernels.interval_attention_fp8.default
    vectors = (intervals.row_start, intervals.row_end)
    torch.library.opcheck(operator, (*tensors, *vectors, False, 0.125))


def test_compiled_equals_eager(device):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    tensors = random_heads(21, 2, 1, 64, DTYPES[1], device)
    intervals = key_intervals([9, 12], [(2, 6)], device=device)
    assert torch.equal(compiled(*tensors, intervals), ours(*tensors, intervals))


def test_refuses_other_head_dimensions(device):
    tensors = random_heads(5, 1, 1, 72, torch.float16, device)
    with pytest.raises(ValueError, match="head dimensions 64, 80, 96 and 128 only, got 72"):
        ours(*tensors, key_intervals([5], device=device))
