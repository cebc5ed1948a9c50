"""`impl="gluon"` as a caller meets it: on a GPU, or on the emulator where Triton is interpreted.

There the kernels in Gluon are emulated and the plain Triton kernels beside them interpreted.
"""

from functools import partial

import pytest
import torch

from metamorph_kernels import backends, interval_attention, key_intervals, reference
from metamorph_kernels.attention import interval_triton
from tests.kernels.attention.test_triton_isolation import results, row_by_row
from tests.kernels.comparisons import value_and_gradients
from tests.kernels.conftest import INTERPRETED
from tests.kernels.random_rows import random_heads, random_row

DTYPES = (torch.float16,) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
LONGEST, MOST, ROWS = (40, 3, 6) if INTERPRETED else (700, 6, 40)

pytestmark = pytest.mark.usefixtures("poisoned", "emulator")


@pytest.fixture
def emulator(monkeypatch):
    if not INTERPRETED:
        return
    from metamorph_kernels.attention import interval_gluon
    from tests.kernels.emulator.attention import Launcher, kernels

    for direction in ("forward", "query_gradient", "key_value_gradient"):
        name = f"attention_{direction}_gluon"
        emulated = Launcher(getattr(kernels(f"{direction}_gluon"), name))
        monkeypatch.setattr(interval_gluon, name, emulated)
    monkeypatch.setattr(backends, "gluon_absence", lambda device_type: None)


def ours(q, k, v, intervals, **options):
    return interval_attention(q, k, v, intervals, impl="gluon", **options)


def out_and_lse(attend):
    """As one tensor, so that the cotangent reaches both."""

    def flat(q, k, v):
        out, lse = attend(q, k, v)
        return torch.cat([out.flatten().to(lse.dtype), lse.flatten()])

    return flat


@pytest.mark.parametrize("seed", range(ROWS))
def test_random_packings_against_float64_and_the_others(device, monkeypatch, seed):
    """Out, lse and gradients, beside PyTorch and Triton with one head a tile; and again, bit for
    bit the same."""
    lengths, spans = random_row(seed, LONGEST, MOST)
    group, head_dim = (1, 2, 4, 8, 3, 16)[seed % 6], (64, 128)[seed // 2 % 2]
    dtype = DTYPES[seed % len(DTYPES)]
    intervals = key_intervals(lengths, spans if seed % 2 else (), device=device)
    tensors = random_heads(sum(lengths), 2 * group, 2, head_dim, dtype, device, seed)

    def all_of(attend, *leaves):
        attend = partial(attend, intervals=intervals, return_lse=True)
        return value_and_gradients(out_and_lse(attend), *leaves)

    actual = all_of(ours, *tensors)
    assert all(map(torch.equal, actual, all_of(ours, *tensors)))
    monkeypatch.setattr(interval_triton, "packed_heads", lambda group: 1)
    others = (
        all_of(reference.interval_attention, *(tensor.double() for tensor in tensors)),
        all_of(partial(interval_attention, impl="triton"), *tensors),
        all_of(partial(interval_attention, impl="torch"), *tensors),
    )
    for mine, true, *rest in zip(actual, *others, strict=True):
        bound = TOLERANCE[dtype] * max(1.0, true.abs().max().item())
        for other in (true, *rest):
            assert (mine.double() - other.double()).abs().max() <= bound


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy says the same
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("where", ["q", "k", "v", "out_gradient"])
def test_only_who_sees_it_is_poisoned(device, where, value):
    lengths, heads = [9, 1, 12, 57], (79, 4, 2, 64, DTYPES[0], device)
    q, k, v = random_heads(*heads, seed=1)
    out_gradient = random_heads(*heads, seed=2)[0]
    # In the third document, which shares its tiles with all others; it begins at 10.
    {"q": q, "k": k, "v": v, "out_gradient": out_gradient}[where][15, -1, 5] = value
    intervals = key_intervals(lengths, [(2, 7), (12, 14)], device=device)
    exact = [tensor.double() for tensor in (q, k, v)]
    truth = results(lambda *leaves: row_by_row(*leaves, intervals), exact, out_gradient)
    actual = results(lambda *leaves: ours(*leaves, intervals), (q, k, v), out_gradient)
    for name, mine, true in zip(("out", "dq", "dk", "dv"), actual, truth, strict=True):
        finite = true.isfinite()
        assert finite[:10].all() and finite[22:].all() and mine.isfinite().eq(finite).all(), name
        true = true.where(finite, 0)
        error = (mine.double() - true).where(finite, 0).abs().max().item()
        assert error <= TOLERANCE[DTYPES[0]] * max(1.0, true.abs().max().item()), name


@pytest.mark.parametrize("dtype, head_dim", [(torch.float32, 64), (DTYPES[0], 80)])
def test_what_it_cannot_take_is_refused(device, dtype, head_dim):
    tensors = random_heads(5, 1, 1, head_dim, dtype, device)
    with pytest.raises(ValueError, match="cannot run in Gluon here: .* only, got"):
        ours(*tensors, key_intervals([5], device=device))
