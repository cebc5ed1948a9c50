"""A few rows times a matrix that is stored by columns, in C++, beside float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies

from metamorph_kernels import cpp_absence, linear_cpp

ABSENCE = cpp_absence("cpu")
pytestmark = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))


def layer(rows, inputs, outputs):
    """x [M, I], whose rows lie apart, weight [O, I] by columns, bias [O]."""
    generator = torch.Generator().manual_seed(rows + inputs + outputs)
    x = torch.randn(rows, inputs + 3, generator=generator)[:, :inputs]
    weight = torch.randn(inputs, outputs + 5, generator=generator)[:, :outputs].t()
    return x, weight, torch.randn(outputs, generator=generator)


@given(
    strategies.integers(0, 40),
    strategies.sampled_from([0, 1, 7, 192, 1024, 1025, 2500]),
    strategies.sampled_from([0, 1, 3, 4, 15, 16, 17, 24, 47, 48, 49, 100, 333]),
    strategies.booleans(),
)
def test_equals_float64(rows, inputs, outputs, has_bias):
    x, weight, bias = layer(rows, inputs, outputs)
    bias = bias if has_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    out = linear_cpp(x, weight, bias)
    assert out.shape == (rows, outputs) and out.is_contiguous()
    tolerance = 1e-6 * (1 + math.sqrt(inputs)) * 4
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=tolerance)


def test_a_row_has_the_bits_of_any_company_and_of_any_number_of_threads():
    x, weight, bias = layer(33, 192, 1000)
    expected = linear_cpp(x, weight, bias)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(linear_cpp(x, weight, bias), expected)
    finally:
        torch.set_num_threads(threads)
    for rows in (1, 2, 5, 8, 13):
        assert torch.equal(linear_cpp(x[:rows], weight, bias), expected[:rows])


def test_what_is_not_finite_stays_in_its_row_and_its_column():
    x, weight, _ = layer(9, 33, 50)
    expected = linear_cpp(x, weight)
    x[3, 5], weight[20, 2] = math.nan, math.inf
    found = linear_cpp(x, weight)
    assert found[3].isnan().all() and not found[:, 20].isfinite().any()
    others = [row for row in range(9) if row != 3]
    rest = [column for column in range(50) if column != 20]
    assert torch.equal(found[others][:, rest], expected[others][:, rest])


def test_columns_of_x_that_are_no_neighbours():
    x, weight, bias = layer(6, 9, 20)
    expected = linear_cpp(x, weight, bias)
    for spread in (x.t().contiguous().t(), torch.stack([x, x], 2)[..., 0]):
        assert torch.equal(linear_cpp(spread, weight, bias), expected)


def test_a_dense_matrix_by_columns_and_a_single_output():
    x, weight, bias = layer(4, 6, 1)
    exact = F.linear(x, weight.contiguous(), bias)
    torch.testing.assert_close(linear_cpp(x, weight.contiguous(), bias), exact)
    torch.library.opcheck(
        torch.ops.metamorph_cpu_ops.linear.default, (x, weight.t().contiguous().t(), bias)
    )


X, WEIGHT, BIAS = layer(4, 6, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X[0], WEIGHT), "x: expected shape .M, I., got 1 dimensions"),
        ((X.double(), WEIGHT), "x: expected Float, got Double"),
        ((X, WEIGHT[:, :4]), "weight: expected shape .O, 6., got .5, 4."),
        ((X, WEIGHT.contiguous()), "weight: expected columns that lie together .* stride of 6"),
        ((X, WEIGHT.bfloat16()), "weight: expected float32 of shape .O, I. on the CPU"),
        ((X, WEIGHT, BIAS[:4]), "bias: expected shape .5., got .4."),
        ((X, WEIGHT, BIAS.double()), "bias: expected Float, got Double"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(RuntimeError, match=words):
        linear_cpp(*arguments)
