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
from rows_on_cpu import run_cosine, run_pool, run_quantise, run_scale

from metamorph_kernels import cosine_loss, pool_normalize
from metamorph_kernels.attention.fp8 import quantise_heads

COLUMNS = [1, 33, 96, 1000, 1152, 1153]


@pytest.fixture(scope="module")
def library(rows_on_cpu):
    return ctypes.CDLL(rows_on_cpu)


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


@pytest.mark.parametrize("columns", [33, 96])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_of_a_mean(library, dtype, columns):
    prediction, target = random_rows(9, columns, dtype), random_rows(9, columns, dtype, seed=1)
    losses, gradient, _ = run_cosine(library, prediction, target, mean=True)
    assert_cosine_rows(losses, gradient, prediction, target, mean=True)
    for index in ([4, -1, 0, 3, 5, 2, 4, -7, 2**40], [-1] * 9):
        index = torch.tensor(index)
        count = (index >= 0).sum()
        losses, gradient, _ = run_cosine(library, prediction, target, index, mean=True, count=count)
        assert_cosine_rows(losses, gradient, prediction, target, index, mean=True)
    assert not losses.any() and not gradient.any()


@pytest.mark.parametrize(("count", "divisor"), [(0, 1), (-3, 1), (1, 1), (8, 8), (2**40, 2**40)])
def test_count_of_a_mean(library, count, divisor):
    prediction, target = (random_rows(9, 96, torch.float32, seed)[4:] for seed in range(2))
    losses, gradient, _ = run_cosine(library, prediction, target)
    results = run_cosine(library, prediction, target, mean=True, count=torch.tensor(count))
    assert torch.equal(results[0], losses)
    assert torch.equal(results[1], gradient / divisor)


@pytest.mark.parametrize("columns", [1152, 1153])
def test_gradient_beyond_the_range_of_float16(library, columns):
    prediction, target = (random_rows(6, columns, torch.float16, seed)[4:] for seed in range(2))
    prediction[0, 24:] = 0
    prediction[0, :24] = 2**-24  # the smallest that float16 holds
    prediction[1] = prediction[1].sign() * 60000
    for mean in (False, True):
        losses, gradient, _ = run_cosine(library, prediction, target, mean=mean)
        assert_cosine_rows(losses, gradient, prediction, target, mean=mean)
        assert gradient[0].half().isinf().any() and (gradient[1].half() == 0).any()
        assert gradient.isfinite().all() and gradient.all()


@pytest.mark.parametrize("factor", [0.37, -3.0, 0.0, 1 + 2**-23])
@pytest.mark.parametrize("offset", [0, 8, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale(library, dtype, offset, factor):
    for count in (0, 1, 7, 8, 119, 120, 121, 240, 1003):  # three threads hold 120
        memory = random_rows(9, 128, dtype)[4:].flatten().repeat(2)
        values = memory[offset : offset + count]
        expected = memory.clone()
        expected[offset : offset + count] = (values.float() * factor).to(dtype)
        run_scale(library, values, factor)
        assert torch.equal(memory.view(torch.uint8), expected.view(torch.uint8))


def test_scale_by_a_number_that_is_not_finite(library):
    values = random_rows(5, 33, torch.bfloat16)[4]
    run_scale(library, values, math.inf)
    assert values.isinf().all()
    run_scale(library, values, math.nan)
    assert values.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_by_one_touches_nothing(library, dtype):
    bits = torch.arange(2**16).to(torch.uint16)  # among them NaNs that arithmetic would change
    values = torch.stack((bits, bits), -1).flatten().view(dtype).clone()
    before = values.clone()
    run_scale(library, values, 1.0)
    assert torch.equal(values.view(torch.uint8), before.view(torch.uint8))


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


@pytest.mark.parametrize("grid", [3, 9])
def test_pool_reads_no_token_without_weight(library, grid):
    features = torch.ones(1, 81, 8)
    features[0, 10] = math.nan  # the only one of 9 x 9 that the first of 3 x 3 reads
    pooled, _ = run_pool(library, features, grid)
    broken = pooled.isnan().any(-1).flatten().nonzero().flatten().tolist()
    assert broken == [{3: 0, 9: 10}[grid]]


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
