from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from metamorph_kernels import pool_normalize, reference
from metamorph_kernels.rows.pooling import tokens_read
from tests.kernels.comparisons import assert_as_good_as_plain, value_and_gradients

GOLDEN = Path(__file__).parents[2] / "data" / "pool.safetensors"


def features(batch=2, side=5, width=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, side * side, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def test_golden_numbers():
    golden = load_file(GOLDEN)
    pooled = reference.pool(golden["features"].double(), 8)
    assert (pooled - golden["pooled"]).abs().max() < 2e-6
    for function in (pool_normalize, reference.pool_normalize):
        unit = function(golden["features"], 8)
        assert unit.dtype == torch.float32
        assert (unit - golden["pooled_normalized"]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("side", "grid"), [(27, 8), (5, 2), (5, 5), (4, 1), (3, 7), (1, 2), (8, 3)]
)
def test_equals_reference(side, grid):
    tokens = features(side=side)
    ours, oracle = (
        value_and_gradients(lambda t, f=f: f(t, grid), tokens)
        for f in (pool_normalize, reference.pool_normalize)
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours[0].norm(dim=-1), torch.ones(2, grid * grid).double())


def test_reads_256_of_729_tokens():
    tokens = features(1, 27).requires_grad_()
    pool_normalize(tokens, 8).sum().backward()
    read = tokens.grad[0].ne(0).any(-1).view(27, 27)
    lines = [1, 2, 4, 5, 7, 8, 11, 12, 14, 15, 18, 19, 21, 22, 24, 25]
    assert read.sum() == 256 and read.any(0).nonzero().flatten().tolist() == lines


@pytest.mark.parametrize("side", range(1, 13))
def test_tokens_read_are_those_with_a_weight(side):
    for grid in range(1, 15):
        tokens = features(1, side).requires_grad_()
        reference.pool(tokens, grid).sum().backward()
        weighed = (tokens.grad[0].abs() > 1e-9).any(-1).nonzero().flatten()
        assert tokens_read(side, grid) == weighed.tolist(), grid


@pytest.mark.parametrize(("side", "grid", "count"), [(27, 8, 256), (27, 9, 81), (27, 27, 729)])
def test_tokens_read_of_siglip(side, grid, count):
    assert len(tokens_read(side, grid)) == count


def test_gradcheck():
    torch.autograd.gradcheck(lambda t: pool_normalize(t, 2), features().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tokens_of_zeros_stay_zeros(dtype):
    tokens = features(dtype=dtype)
    tokens[1] = 0
    out, gradient = value_and_gradients(lambda t: pool_normalize(t, 2), tokens)
    assert out.dtype == dtype and gradient.dtype == dtype
    assert out[1].eq(0).all() and gradient[1].eq(0).all()
    assert out[0].ne(0).all() and gradient.isfinite().all()


def test_bfloat16_is_as_good_as_plain_bfloat16():
    def plain(tokens):
        image = tokens.unflatten(1, (9, 9)).permute(0, 3, 1, 2)
        pooled = F.interpolate(image, size=(4, 4), mode="bilinear", align_corners=False)
        return F.normalize(pooled.flatten(2).transpose(1, 2), dim=-1)

    assert_as_good_as_plain(lambda t: pool_normalize(t, 4), plain, features(2, 9, 32))


def test_arithmetic_on_bfloat16_rounds_once_at_the_end():
    tokens = features(2, 9, 32).bfloat16()
    exact = reference.pool_normalize(tokens.double(), 4)
    torch.testing.assert_close(pool_normalize(tokens, 4).double(), exact, rtol=2**-8, atol=1e-7)


def test_compiled_equals_eager():
    compiled = torch.compile(pool_normalize, fullgraph=True, backend="aot_eager")
    eager, traced = (
        value_and_gradients(lambda t, f=f: f(t, 2), features(dtype=torch.float32))
        for f in (pool_normalize, compiled)
    )
    torch.testing.assert_close(eager, traced)  # the compiler rewrites the resize


def test_an_empty_batch():
    assert pool_normalize(torch.zeros(0, 9, 4), 2).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(9, 3), 2), r"features: .*\[B, N, C\].*got \[9, 3\]"),
        ((torch.ones(1, 8, 3), 2), r"features: .*a square, got \[1, 8, 3\]"),
        ((torch.ones(1, 0, 3), 2), r"features: .*a square, got \[1, 0, 3\]"),
        ((torch.ones(1, 9, 3).int(), 2), "features: .*got torch.int32"),
        (("image", 2), "features: expected a tensor, got str"),
        ((torch.ones(1, 9, 3), 0), "grid: expected a positive integer, got 0"),
        ((torch.ones(1, 9, 3), 2.0), "grid: expected a positive integer, got 2.0"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        pool_normalize(*arguments)
    with pytest.raises(ValueError, match="impl: pool_normalize takes 'auto', .*, got 'numpy'"):
        pool_normalize(torch.ones(1, 9, 3), 2, impl="numpy")
