import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from metamorph_kernels import pool_normalize, reference
from metamorph_kernels.rows import pooling_triton
from metamorph_kernels.rows.pooling import tokens_read
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
OPERATORS = torch.ops.metamorph_kernels

pytestmark = pytest.mark.usefixtures("poisoned")


def ours(features, grid):
    return pool_normalize(features, grid, impl="triton")


def plain(features, grid):
    return pool_normalize(features, grid, impl="torch")


def tokens(batch, side, width, dtype=DTYPES[0], device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, side * side, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def value_and_gradient(function, features, grid, cotangent=None):
    leaf = features.detach().requires_grad_()
    out = function(leaf, grid)
    if cotangent is None:
        cotangent = tokens(len(out), grid, features.shape[2], torch.float64, seed=1)
    out.backward(cotangent.to(out))
    return out.detach(), leaf.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("side", "grid", "width"),
    [(5, 2, 1152), (4, 3, 129), (5, 5, 96), (4, 1, 33), (3, 5, 1), (1, 2, 1000), (8, 3, 200)]
    + [(7, 3, 300), (6, 4, 40), (2, 1, 4096), (2, 2, 8192), (2, 3, 600)],
)
def test_against_float64(device, dtype, side, grid, width):
    features = tokens(2, side, width, dtype, device)
    out, gradient = value_and_gradient(ours, features, grid)
    exact, true_gradient = value_and_gradient(reference.pool_normalize, features.double(), grid)
    assert out.dtype == gradient.dtype == dtype and out.shape == (2, grid * grid, width)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out.double(), exact, rtol=close["rtol"], atol=1e-6)
    scale = max(true_gradient.abs().amax().item(), 1.0)
    torch.testing.assert_close(gradient / scale, true_gradient.to(gradient) / scale, **close)


@pytest.mark.parametrize("side", range(1, 6))
def test_every_small_grid_and_its_gradient(device, side):
    for grid in (1, 2, 3, 5):
        features = tokens(1, side, 3, torch.float32, device)
        results = value_and_gradient(ours, features, grid)
        exact = value_and_gradient(reference.pool_normalize, features.double(), grid)
        for result, true in zip(results, exact, strict=True):
            torch.testing.assert_close(result.double(), true, rtol=1e-4, atol=1e-4)


def test_siglip_to_its_64_tokens(device):
    features = tokens(1, 27, 1152, device=device)
    exact = reference.pool_normalize(features.double(), 8)
    torch.testing.assert_close(
        ours(features, 8).double(), exact, rtol=TOLERANCE[DTYPES[0]], atol=1e-6
    )


def test_only_tokens_read_take_a_gradient(device):
    _, gradient = value_and_gradient(ours, tokens(1, 14, 4, torch.float32, device), 4)
    read = gradient[0].ne(0).any(-1).nonzero().flatten().tolist()
    assert read == tokens_read(14, 4) and len(read) == 64


# SigLIP's 27 to 8; the interpreter takes a fifth of the time for nearly the same ratio.
UNEVEN = (13, 4) if INTERPRETED else (27, 8)


@pytest.mark.parametrize(("side", "grid"), [(4, 4), (9, 3), (3, 6), UNEVEN])
def test_what_is_not_finite_stays_with_the_tokens_that_read_it(device, side, grid):
    features = tokens(1, side, 8, torch.float32, device)
    clean, clean_gradient = value_and_gradient(ours, features, grid)
    features[0, side + 1, 3] = torch.nan
    out, gradient = value_and_gradient(ours, features, grid)
    weights = reference.pool(torch.eye(side * side)[None], grid)[0]
    reads = weights[:, side + 1] > 0  # which of the outputs
    beside = weights[reads].gt(0).any(0)  # which of the inputs they read
    expected = clean.clone()
    expected[0, reads] = torch.nan
    torch.testing.assert_close(out, expected, equal_nan=True)
    clean_gradient[0, beside] = torch.nan
    torch.testing.assert_close(gradient, clean_gradient, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, of what overflows
def test_tokens_of_every_size_mean_what_they_mean_in_pytorch(device):
    sizes = torch.tensor(
        [0.0, 1e-30, 3e-21, 1e-18, 1e-6, 1e4, 1e15, 1e18, 1e30, torch.inf, torch.nan],
        dtype=torch.float64,
    )
    features = (tokens(11, 3, 96, torch.float64) * sizes[:, None, None]).to(device, DTYPES[0])
    results, expected = (
        value_and_gradient(function, features, 2, torch.ones(11, 4, 96))
        for function in (ours, plain)
    )
    close = {"rtol": 1e-2, "atol": 1e-4, "equal_nan": True}
    torch.testing.assert_close(results[0], expected[0], **close)
    largest = expected[1].double().abs().amax((1, 2), keepdim=True)
    largest = largest.where(largest > 0, 1)
    torch.testing.assert_close(results[1][:9] / largest[:9], expected[1][:9] / largest[:9], **close)
    assert results[0][:3].eq(0).all() and results[1][:3].eq(0).all()


def test_views_of_larger_tensors_and_an_empty_batch(device):
    features = tokens(2, 3, 40, device=device)
    expected = value_and_gradient(ours, features, 2)
    wide = torch.cat([features, features], 2)
    views = (
        wide[..., 40:],
        torch.stack([features, features], 1)[:, 1],
        torch.cat([features, features], 1)[:, 9:],
        torch.cat([features[..., :1], features], 2)[..., 1:],
        features.transpose(1, 2).contiguous().transpose(1, 2),
        features.transpose(0, 1).contiguous().transpose(0, 1),
    )
    for view in views:
        assert torch.equal(view, features)
        for one, other in zip(value_and_gradient(ours, view, 2), expected, strict=True):
            assert torch.equal(one, other)
    turned = tokens(2, 2, 40, torch.float64, seed=1).to(expected[0])
    turned = turned.transpose(1, 2).contiguous().transpose(1, 2)  # a cotangent of other strides
    assert torch.equal(value_and_gradient(ours, features, 2, turned)[1], expected[1])
    repeated = features[:1].expand(2, -1, -1)
    assert torch.equal(ours(repeated, 2)[1], expected[0][0])
    out, gradient = value_and_gradient(ours, features[:0], 2)
    assert out.shape == (0, 4, 40) and gradient.shape == (0, 9, 40)


def test_images_further_apart_than_an_int32_counts(device, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    features = tokens(3, 3, 33, torch.float16, device)
    spread = torch.empty(2**31 + 512, dtype=torch.float16, device=device)
    spread = spread.as_strided((3, 9, 33), (2**30, 33, 1))
    spread.copy_(features)
    assert torch.equal(ours(spread, 2), ours(features, 2))
    gradient = tokens(3, 2, 33, torch.float16, device, seed=1)
    results = (OPERATORS.pool_normalize_backward(gradient, x, 2) for x in (spread, features))
    assert torch.equal(*results)


def test_frozen_features_keep_nothing(device):
    features = tokens(1, 3, 8, device=device)
    assert not ours(features, 2).requires_grad
    with torch.no_grad():
        assert not ours(features.requires_grad_(), 2).requires_grad


def test_operator_checks(device):
    features, gradient = tokens(2, 3, 33, device=device), tokens(2, 2, 33, device=device)
    torch.library.opcheck(OPERATORS.pool_normalize.default, (features, 2))
    torch.library.opcheck(OPERATORS.pool_normalize_backward.default, (gradient, features, 2))


def test_compiles_whole_and_equals_eager(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    for seed in (0, 1):
        features = tokens(2, 3, 40, device=device, seed=seed)
        eager, traced = (value_and_gradient(f, features, 2) for f in (ours, compiled))
        assert torch.equal(eager[0], traced[0]) and torch.equal(eager[1], traced[1])
        assert torch.equal(compiled(features, 2), eager[0])
    assert counter.frame_count == 2  # with gradient and without


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.ones(1, 4, 3).double(), "float64 runs in PyTorch only"),
        (torch.ones(1, 1, 8193), "rows of at most 8192 only, got 8193"),
    ],
)
def test_refuses(device, features, words):
    with pytest.raises(
        ValueError, match=f"impl: pool_normalize cannot run in Triton here: {words}"
    ):
        ours(features.to(device), 1)


def test_every_class_of_widths_has_its_warps():
    assert list(pooling_triton.NUM_WARPS) == [128 * 2**power for power in range(7)]
