"""A number that is not finite reaches what may see it, and nothing else in its tile."""

import pytest
import torch

from metamorph_kernels import interval_attention, interval_attention_fp8, key_intervals
from metamorph_kernels.attention import fp8, fp8_triton, interval_triton
from metamorph_kernels.attention.fp8_heads_triton import quantise_qkv
from tests.kernels.conftest import INTERPRETED
from tests.kernels.random_rows import random_heads

pytestmark = [
    pytest.mark.usefixtures("poisoned", "tiles", "either_maximum"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's numpy says the same
]
DTYPE, TOLERANCE = (torch.float32, 2e-5) if INTERPRETED else (torch.bfloat16, 3e-2)
LONGEST, MOST = (14, 4) if INTERPRETED else (150, 4)


@pytest.fixture
def tiles(monkeypatch):
    if INTERPRETED:
        small = interval_triton.Tiles(16, 16, num_warps=4, num_stages=1)
        for module in (interval_triton, fp8_triton):
            monkeypatch.setattr(module, "TILES", dict.fromkeys(module.TILES, small))


def row_by_row(q, k, v, intervals):
    """The definition of attention, of each query and the keys that it sees and no others."""
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    bounds = zip(intervals.row_start.tolist(), intervals.row_end.tolist(), strict=True)
    rows = []
    for query, (start, end) in zip(q, bounds, strict=True):
        scores = torch.einsum("hd,jhd->hj", query, k[start:end]) / q.shape[-1] ** 0.5
        rows.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), v[start:end]))
    return torch.stack(rows)


def results(attend, tensors, out_gradient):
    """out, dq, dk and dv."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = attend(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, out_gradient.to(out.dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["q", "k", "v", "out_gradient"])
def test_only_who_sees_it_is_poisoned(device, where, value):
    lengths, spans = [9, 1, 12, 7], [(2, 7), (12, 14)]
    heads = (sum(lengths), 4, 2, 64, DTYPE, device)
    q, k, v = random_heads(*heads, seed=1)
    out_gradient = random_heads(*heads, seed=2)[0]
    # In the third document, which shares its tiles with all others; it begins at 10.
    {"q": q, "k": k, "v": v, "out_gradient": out_gradient}[where][15, -1, 5] = value

    intervals = key_intervals(lengths, spans, device=device)
    exact = [tensor.double() for tensor in (q, k, v)]
    truth = results(lambda *leaves: row_by_row(*leaves, intervals), exact, out_gradient)
    actual = results(
        lambda *leaves: interval_attention(*leaves, intervals, impl="triton"),
        (q, k, v),
        out_gradient,
    )
    for name, mine, true in zip(("out", "dq", "dk", "dv"), actual, truth, strict=True):
        finite = true.isfinite()
        assert finite[:10].all() and finite[22:].all() and mine.isfinite().eq(finite).all(), name
        true = true.where(finite, 0)
        error = (mine.double() - true).where(finite, 0).abs().max().item()
        assert error <= TOLERANCE * max(1.0, true.abs().max().item()), name


@pytest.mark.parametrize("head_dim", [64, 80])
def test_every_program_repeats_all_of_its_bad_tiles(device, head_dim):
    lengths = [5] * (8 if INTERPRETED else 200)
    heads = (sum(lengths), 8, 1, head_dim, DTYPE, device)
    q, k, v = random_heads(*heads)
    clean = interval_attention(q, k, v, key_intervals(lengths, device=device), impl="triton")
    v[::10, 0, 0] = float("nan")  # of the first token of every second document
    out = interval_attention(q, k, v, key_intervals(lengths, device=device), impl="triton")
    document = torch.arange(len(v), device=device) // 5
    poisoned = (document % 2 == 0)[:, None].expand(-1, 8)
    assert out[..., 0].isnan().eq(poisoned).all() and out[..., 1:].isfinite().all()
    torch.testing.assert_close(out[..., 1:], clean[..., 1:], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_in_float8_too(device, exact_float8, where, value):
    lengths, spans = [9, 1, 12, 7], [(2, 7), (12, 14)]
    q, k, v = random_heads(sum(lengths), 4, 2, 80, DTYPE, device, seed=1)
    {"q": q, "k": k, "v": v}[where][15, -1, 5] = value
    intervals = key_intervals(lengths, spans, device=device)
    kept = [
        rounded.float() * scale[:, None] for rounded, scale in map(fp8.quantise_heads, (q, k, v))
    ]
    truth = row_by_row(*(tensor.double() for tensor in kept), intervals)
    out = interval_attention_fp8(q, k, v, intervals, impl="triton")
    finite = truth.isfinite()
    assert finite[:10].all() and finite[22:].all() and out.isfinite().eq(finite).all()
    # Weights are rounded too, to three bits and so by at most 2 ** -4.
    largest = v.nan_to_num(nan=0, posinf=0).abs().max()
    assert (out - truth).where(finite, 0).abs().max() <= 2**-4 * largest


@pytest.mark.parametrize("head_dim", [64, 80])
def test_heads_are_rounded_by_what_is_finite_in_them(device, exact_float8, head_dim):
    tokens = 70
    q, k, v = random_heads(tokens, 4, 2, head_dim, DTYPE, device)
    k[:, 1], q[3, 0, 1], q[5, 1], v[69, 0, 7] = 0.0, float("inf"), float("nan"), -float("inf")
    q8, k8, v8, *scales = quantise_qkv(q, k, v)
    ours = q8.transpose(0, 1), k8.transpose(0, 1), v8.permute(2, 0, 1)
    for mine, my_scales, tensor in zip(ours, scales, (q, k, v), strict=True):
        expected, expected_scales = fp8.quantise_heads(tensor)
        torch.testing.assert_close(my_scales, expected_scales)
        torch.testing.assert_close(
            mine.float(), expected.float(), rtol=0.125, atol=0, equal_nan=True
        )  # a quotient at the middle of two numbers may fall to either side
