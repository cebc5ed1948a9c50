"""The row functions of the CUDA kernels, compiled for the CPU, against float64 and PyTorch.

The same templates run on the GPU; there a team is a warp or a block, here it is a few threads.
"""

import ctypes
import math

import pytest
import torch
from row_truth import (
    DTYPES,
    assert_cosine_rows,
    assert_pooled,
    assert_quantised,
    embedded,
    random_rows,
)

from metamorph_kernels import cosine_loss, pool_normalize
from metamorph_kernels.attention_fp8 import quantise_heads

COLUMNS = [1, 33, 96, 1000, 1152, 1153]
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Element of kernels.h
int64, pointer = ctypes.c_int64, ctypes.c_void_p


def structure(name: str, **fields: type) -> type:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Rows = structure("Rows", data=pointer, element=ctypes.c_int, stride=int64)
CosineRows = structure(
    "CosineRows",
    prediction=Rows,
    target=Rows,
    target_index=pointer,
    rows=int64,
    targets=int64,
    columns=int64,
    losses=pointer,
    gradient=pointer,
)
PoolNormalize = structure(
    "PoolNormalize",
    tokens=Rows,
    image_stride=int64,
    images=int64,
    columns=int64,
    side=ctypes.c_int,
    grid=ctypes.c_int,
    pooled=pointer,
)
QuantiseRows = structure(
    "QuantiseRows",
    x=Rows,
    rows=int64,
    columns=int64,
    with_gelu=ctypes.c_bool,
    values=pointer,
    scales=pointer,
)


def rows_of(tensor: torch.Tensor) -> Rows:
    return Rows(tensor.data_ptr(), ELEMENTS[tensor.dtype], tensor.stride(-2))


@pytest.fixture(scope="module")
def library(rows_on_cpu):
    return ctypes.CDLL(rows_on_cpu)


def run_cosine(library, prediction, target, index=None, *, threads=32, with_gradient=True):
    """Losses, gradient (or None), and whether the rows were held."""
    losses = torch.full((len(prediction),), math.nan)
    gradient = torch.full_like(prediction, math.nan, memory_format=torch.contiguous_format)
    arguments = CosineRows(
        rows_of(prediction),
        rows_of(target),
        None if index is None else index.data_ptr(),
        *prediction.shape[:1],
        *target.shape,
        losses.data_ptr(),
        gradient.data_ptr() if with_gradient else None,
    )
    held = library.cosine_rows_on_cpu(ctypes.byref(arguments), threads)
    return losses, gradient if with_gradient else None, bool(held)


def run_pool(library, features, grid, *, threads=32):
    images, tokens, columns = features.shape
    pooled = torch.full((images, grid * grid, columns), math.nan, dtype=features.dtype)
    arguments = PoolNormalize(
        rows_of(features),
        features.stride(0),
        images,
        columns,
        math.isqrt(tokens),
        grid,
        pooled.data_ptr(),
    )
    held = library.pool_normalize_on_cpu(ctypes.byref(arguments), threads)
    return pooled, bool(held)


def run_quantise(library, x, gelu=False, *, threads=32):
    values = torch.full(x.shape, math.nan).to(torch.float8_e4m3fn)
    scales = torch.full((len(x),), math.nan)
    arguments = QuantiseRows(rows_of(x), *x.shape, gelu, values.data_ptr(), scales.data_ptr())
    held = library.quantise_rows_on_cpu(ctypes.byref(arguments), threads)
    return values, scales, bool(held)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine(library, dtype, columns):
    prediction = random_rows(7, columns, dtype)
    target = random_rows(7, columns, dtype, seed=1).flip(0)
    losses, gradient, held = run_cosine(library, prediction, target)
    assert held == (columns % 8 == 0)
    assert_cosine_rows(losses, gradient, prediction, target)
    assert losses[0] == 1 and (gradient[0] == 0).all()
    ours = prediction.clone().requires_grad_()
    theirs = cosine_loss(ours, target, reduction="none", impl="torch")
    torch.testing.assert_close(losses, theirs.detach(), rtol=0, atol=2e-6)
    losses, gradient, _ = run_cosine(library, prediction, target, with_gradient=False)
    assert_cosine_rows(losses, gradient, prediction, target)


@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_of_two_dtypes_by_index(library, dtype, target_dtype):
    prediction, target = random_rows(9, 96, dtype), random_rows(5, 96, target_dtype, seed=1)
    index = torch.tensor([4, -1, 0, 3, 5, 2, 4, -7, 2**40])
    losses, gradient, held = run_cosine(library, prediction, target, index, threads=3)
    assert held
    assert_cosine_rows(losses, gradient, prediction, target, index)
    assert losses[1] == 0 and losses[4].isnan()


@pytest.mark.parametrize(
    ("threads", "columns", "offset", "gap", "held"),
    [
        (32, 1280, 8, 16, True),
        (32, 1288, 0, 0, False),  # wider than the team holds
        (64, 1288, 0, 0, True),
        (32, 96, 1, 0, False),  # a misaligned start
        (32, 96, 0, 3, False),  # a misaligned distance
        (1, 33, 0, 0, False),
        (1, 40, 0, 0, True),
    ],
)
def test_how_rows_lie_in_memory(library, threads, columns, offset, gap, held):
    prediction = embedded(random_rows(5, columns, torch.bfloat16), offset, gap)
    target = embedded(random_rows(5, columns, torch.float32, seed=1), 0, 2 * gap)
    *results, was_held = run_cosine(library, prediction, target, threads=threads)
    assert was_held == held
    assert_cosine_rows(*results, prediction, target)
    features = embedded(random_rows(9, columns, torch.float16)[4:8][None], offset, gap)
    pooled, was_held = run_pool(library, features, 3, threads=threads)
    assert was_held == held
    assert_pooled(pooled, features, 3)
    *results, was_held = run_quantise(library, prediction, threads=threads)
    assert was_held == held
    assert_quantised(*results, prediction, gelu=False)


@pytest.mark.parametrize("columns", [33, 40])
def test_cosine_of_extreme_rows(library, columns):
    scales = torch.tensor([[1e25, 1e25], [1e-18, 1e-18], [1e18, 1e-18], [1e-20, 1], [1, 1e-20]])
    scales = torch.cat((scales, torch.ones(3, 2)))
    prediction, target = (random_rows(12, columns, torch.float32, seed)[4:] for seed in range(2))
    prediction, target = prediction * scales[:, :1], target * scales[:, 1:]
    prediction[5, 7], target[6, 7] = math.nan, math.inf
    target[7] = prediction[7] * 3
    losses, gradient, _ = run_cosine(library, prediction, target)
    leaf = prediction.clone().requires_grad_()
    expected = cosine_loss(leaf, target, reduction="none", impl="torch")
    [slope] = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(losses, expected.detach(), rtol=0, atol=5e-6, equal_nan=True)
    assert (losses[[0, 3, 4]] == 1).all() and (gradient[[0, 3, 4]] == 0).all()
    assert abs(losses[7]) < 1e-6
    close = (gradient - slope).abs() <= 1e-5 * slope.abs().amax(1, keepdim=True) + 1e-6
    assert (close | slope.isnan()).all() and torch.equal(gradient.isnan(), slope.isnan())


@pytest.mark.parametrize(("side", "grid"), [(27, 8), (3, 7), (1, 2), (4, 4), (5, 1), (6, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool(library, dtype, side, grid):
    for columns in (24, 33):
        features = random_rows(2 * side * side + 4, columns, dtype)[4:].unflatten(0, (2, -1))
        pooled, held = run_pool(library, features, grid, threads=4)
        assert held == (columns == 24)
        assert_pooled(pooled, features, grid)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool_of_odd_widths(library, dtype, columns):
    features = random_rows(9, columns, dtype)[None].repeat(2, 1, 1)
    features[1] = features[0, 2]  # too short
    if columns == 1:
        features[0, 3] = 1.0  # PyTorch takes no square of a single column, which would overflow
    pooled, _ = run_pool(library, features, 3)
    assert (pooled[1] == 0).all()
    expected = pool_normalize(features, 3, impl="torch")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(pooled, expected, rtol=eps, atol=max(2e-6, eps / 64))


def test_pool_of_short_and_broken_tokens(library):
    features = torch.full((4, 1, 3), 1e-20)
    features[1:] = torch.tensor([[[1e-19] * 3], [[math.nan, 1, 1]], [[math.inf, 1, 1]]])
    pooled, _ = run_pool(library, features, 1)
    expected = pool_normalize(features, 1, impl="torch")
    torch.testing.assert_close(pooled, expected, equal_nan=True)
    assert (pooled[0] == 0).all() and (pooled[1] > 0.57).all()


def test_pool_reads_four_tokens_for_each(library):
    features = torch.full((1, 27 * 27, 8), math.nan)
    near = [int(max((position + 0.5) * 27 / 8 - 0.5, 0)) for position in range(8)]
    read = [row * 27 + column for row in near for column in near]
    for corner in (0, 1, 27, 28):
        features[0, [token + corner for token in read]] = 1.0
    assert not features.isfinite().all() and features[0, :, 0].isfinite().sum() == 256
    pooled, _ = run_pool(library, features, 8)
    assert pooled.isfinite().all()


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantise_equals_pytorch(library, dtype, columns):
    x = random_rows(9, columns, dtype)
    x[7] *= 1e-4
    values, scales, held = run_quantise(library, x)
    assert held == (columns % 8 == 0)
    assert_quantised(values, scales, x, gelu=False)
    expected, expected_scales = quantise_heads(x[None])
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.float(), expected[0].float())
    values, scales, _ = run_quantise(library, x, gelu=True)
    assert_quantised(values, scales, x, gelu=True)


def test_quantise_over_the_whole_range_of_float32(library):
    scale = 2.0 ** torch.arange(-149, 120)[:, None]
    x = torch.randn(len(scale), 40, generator=torch.Generator().manual_seed(0)) * scale
    values, scales, _ = run_quantise(library, x)
    expected, expected_scales = quantise_heads(x[None])
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.float(), expected[0].float())


@pytest.mark.parametrize("columns", [24, 33])
def test_quantise_of_rows_that_are_not_finite(library, columns):
    x = random_rows(4, columns, torch.float32)
    x[1, 3], x[2, 5], x[3, 0] = math.nan, math.inf, -math.inf
    for gelu in (False, True):
        values, scales, _ = run_quantise(library, x, gelu)
        assert (values[0].float() == 0).all() and scales[0] == 1
        assert values[1:].float().isnan().all()
