import math
from functools import partial

import pytest
import torch

from metamorph_kernels import float8, linear_fp8, linears_fp8, mlp_gelu_fp8
from metamorph_kernels.float8 import E4M3, E5M2
from metamorph_kernels.linear import float8_linear, float8_triton
from metamorph_kernels.rows import quantise_triton
from tests.kernels.comparisons import value_and_gradients
from tests.kernels.conftest import INTERPRETED
from tests.kernels.linear.float8_layers import errors, random_layer, random_mlp, side_by_side

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3}
SHAPES = [(1, 16, 16), (7, 48, 96), (33, 96, 32), (70, 32, 144)]  # N, I, O
MLP_SHAPES = [(1, 16, 16, 16), (7, 48, 96, 32), (40, 32, 80, 48)]  # N, I, F, O
if not INTERPRETED:
    SHAPES += [(513, 1152, 4096), (64, 4096, 1152), (4100, 1152, 4096), (8192, 4096, 14336)]
    MLP_SHAPES += [(513, 1152, 4096, 4096), (4100, 4096, 4096, 1152)]

pytestmark = [
    pytest.mark.usefixtures("poisoned", "tiles", "exact_float8"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide"),  # inf / inf
]


SHIPPED = float8_triton.WIDE, float8_triton.NARROW


@pytest.fixture
def tiles(monkeypatch):
    """Small ones, so that a few rows have many: one of two strips, one of a single strip."""
    if INTERPRETED:
        for name, width in (("WIDE", 64), ("NARROW", 32)):
            small = float8_triton.Tiles(16, width, 32, num_warps=4, num_stages=1, residents=1)
            monkeypatch.setattr(float8_triton, name, small)
        monkeypatch.setattr(float8_triton, "BAND", 2)  # 70 rows are a whole band and a rest
        monkeypatch.setattr(quantise_triton, "NUMBERS_PER_WARP", 16 * 1024)  # fewer programs


def ours(*tensors):
    op = linear_fp8 if len(tensors) < 5 else mlp_gelu_fp8
    return op(*tensors, impl="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_equals_the_definition(device, shape, dtype):
    layer = random_layer(*shape, dtype, device)
    assert max(errors(ours, *layer)) < ROUNDING[dtype]


def test_without_bias(device):
    x, weight, bias = random_layer(7, 48, 96, DTYPES[1], device)
    without = value_and_gradients(ours, x, weight)
    biased = value_and_gradients(ours, x, weight, torch.zeros_like(bias))
    assert all(torch.equal(one, other) for one, other in zip(without, biased, strict=False))


def test_several_layers_of_one_input_are_those_layers(device):
    layers = [random_layer(7, 48, width, DTYPES[1], device, seed=width) for width in (32, 96)]
    x = layers[0][0]
    layers = [layer[1:] for layer in layers]
    results, _, gradients = side_by_side(partial(linears_fp8, impl="triton"), x, layers)
    for (weight, bias), result, found in zip(layers, results, gradients, strict=True):
        alone = [leaf.clone().requires_grad_() for leaf in (weight, bias)]
        expected = ours(x, *alone)
        expected.backward(torch.ones_like(expected))
        assert torch.equal(result, expected)
        assert all(torch.equal(one, leaf.grad) for one, leaf in zip(found, alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MLP_SHAPES, ids=str)
def test_mlp_equals_the_definition(device, shape, dtype):
    # The activation of float32 and float64 may fall to either side of the middle of two numbers.
    assert max(errors(ours, *random_mlp(*shape, dtype, device))) < ROUNDING[dtype] + 3e-3


@pytest.mark.parametrize("shipped", SHIPPED, ids=["wide", "narrow"])
def test_shipped_tiles_equal_the_definition(device, monkeypatch, shipped):
    for name in ("WIDE", "NARROW"):
        monkeypatch.setattr(float8_triton, name, shipped)
    layer = random_layer(270, 144, 144, DTYPES[1], device)
    assert max(errors(ours, *layer)) < ROUNDING[DTYPES[1]]


QUANTISATIONS = [
    ("quantise_rows", (1, 16)),
    ("quantise_rows", (33, 1152)),
    ("quantise_columns", (1, 16)),
    ("quantise_columns", (513, 48)),
    ("quantise_columns", (16, 1152)),
]


@pytest.mark.parametrize(("to", "gelu"), [(E4M3, False), (E4M3, True), (E5M2, False)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "shape"), QUANTISATIONS)
def test_quantisation_equals_that_of_pytorch(device, name, shape, dtype, to, gelu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * torch.logspace(-2, 1, shape[1])
    x = x.to(device, dtype)
    values, scales = getattr(float8_triton, name)(x, to, gelu)
    expected, expected_scales = getattr(float8, name)(x, to, gelu)
    assert values.shape == expected.shape and values.dtype == to
    # GELU of a negative number has few exact bits, and of one below -6 none.
    torch.testing.assert_close(scales, expected_scales, rtol=1e-3 if gelu else 1e-6, atol=1e-10)
    kept, truth = (
        values.float() * scales[:, None],
        expected.float() * expected_scales[:, None],
    )
    assert (kept - truth).norm() <= 1e-2 * truth.norm()
    # A number at the middle of two of float8 may fall to either side: by 1/16 of it or more.
    others = (kept - truth).abs() > 2e-3 * truth.abs() + 1e-10
    assert others.float().mean() <= (1e-3 if INTERPRETED else 1e-1)


@pytest.mark.parametrize("name", ["quantise_rows", "quantise_columns"])
def test_quantisation_of_strided_rows(device, name):
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(0)).to(device)
    quantise = getattr(float8_triton, name)
    expected, scales = quantise(x, E4M3)
    for strided in (torch.cat([x, x, x], 1)[:, 48:96], x.t().contiguous().t()):
        values, its_scales = quantise(strided, E4M3)
        assert torch.equal(values.float(), expected.float()) and torch.equal(its_scales, scales)


@pytest.mark.usefixtures("either_maximum")
@pytest.mark.parametrize("to", [E4M3, E5M2])
def test_rows_that_have_no_scale(device, to):
    largest = torch.finfo(to).max
    x = torch.ones(6, 16, device=device)
    x[0] = 0
    x[1] = 1e-45  # its scale underflows to 0
    x[2] = 600 * 1.4e-45  # a scale of one step, if any
    x[3, 4], x[4, 5], x[5, 6] = math.nan, math.inf, -math.inf
    values, scales = float8_triton.quantise_rows(x, to)
    turned, turned_scales = float8_triton.quantise_columns(x.t(), to)
    assert torch.equal(scales[:3], turned_scales[:3])
    assert torch.equal(values[:3].float(), turned[:3].float())
    assert scales[:2].eq(1).all() and values[:2].float().eq(0).all()
    assert values[2].float().eq(largest if to == E4M3 else 0).all()
    for scaled in (values.float() * scales[:, None], turned.float() * turned_scales[:, None]):
        assert scaled[3:].isnan().all()


def test_columns_of_no_rows_are_zeros(device):
    values, scales = float8_triton.quantise_columns(torch.empty(0, 48, device=device), E4M3)
    assert values.shape == (48, 16) and values.float().eq(0).all() and scales.eq(1).all()


@pytest.mark.usefixtures("either_maximum")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(device, bad):
    x, weight, bias = random_layer(40, 48, 32, DTYPES[0], device)
    others = [row for row in range(40) if row != 3]
    expected = ours(x, weight, bias)[others]
    x[3, 5] = bad
    y = ours(x, weight, bias)
    assert y[3].isnan().all() and torch.equal(y[others], expected)
    x.requires_grad_()
    gradient = torch.ones(40, 32, device=device, dtype=DTYPES[0])
    gradient[2, 1] = bad
    ours(x, weight).backward(gradient)
    assert x.grad[2].isnan().all() and x.grad[others[:2] + others[3:]].isfinite().all()


@pytest.mark.parametrize("inputs", [random_layer, random_mlp])
def test_no_rows(device, inputs):
    tensors = inputs(0, *(48, 32, 16)[: 2 if inputs is random_layer else 3], DTYPES[0], device)
    y, *gradients = value_and_gradients(ours, *tensors)
    assert y.shape == (0, len(tensors[-1]))
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_strided_inputs_and_second_runs_have_the_same_bits(device):
    x, weight, bias = random_layer(35, 48, 64, DTYPES[1], device)
    wide = torch.cat([x, x], 1)[:, 48:]
    turned = weight.t().contiguous().t()
    spread = torch.stack([bias, bias], 1)[:, 0]
    runs = [
        value_and_gradients(ours, *layer)
        for layer in ((x, weight, bias), (x, weight, bias), (wide, turned, spread))
    ]
    for first, second, strided in zip(*runs, strict=True):
        assert torch.equal(first, second) and torch.equal(first, strided)


def test_gradients_spread_from_one_number(device):
    """`sum` hands back a gradient of strides 0."""
    x, weight, bias = random_layer(7, 48, 96, DTYPES[0], device)
    x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    ours(x, weight, bias).sum().backward()
    expected = float8.quantise_columns(x.detach(), E4M3)
    kept = (expected[0].float() * expected[1][:, None]).sum(1).to(x.dtype)
    torch.testing.assert_close(weight.grad, kept.expand(96, 48), rtol=2e-2, atol=2e-2)
    assert bias.grad.eq(7).all()


def test_operator_checks(device):
    x, weight, bias = random_layer(7, 48, 32, DTYPES[1], device)
    operators = torch.ops.metamorph_kernels
    for arguments in ((x, E4M3, True), (x, E5M2, False)):
        torch.library.opcheck(operators.float8_rows.default, arguments)
        torch.library.opcheck(operators.float8_columns.default, arguments)
    factors = (*float8.quantise_rows(x, E5M2), *float8.quantise_rows(weight, E4M3))
    z = torch.ones(7, 32, dtype=x.dtype, device=device)
    for arguments in ((x.dtype,), (x.dtype, bias), (x.dtype, None, z)):
        torch.library.opcheck(
            operators.float8_product.default,
            (*factors, *arguments),
            test_utils=(
                "test_autograd_registration",
                "test_faketensor",
                "test_aot_dispatch_dynamic",
            ),
        )  # test_schema compares inputs, for which PyTorch's float8 lacks a function


def test_compiled_equals_eager_for_any_number_of_rows(device):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for rows in (9, 33):
        tensors = random_layer(rows, 48, 32, DTYPES[0], device)
        eager, traced = (value_and_gradients(f, *tensors) for f in (ours, compiled))
        assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))


def test_autocast_reaches_the_kernels(device):
    half = torch.float16  # which the interpreter computes with
    layer = random_layer(9, 48, 32, torch.float32, device)
    with torch.autocast(device, half):
        y, x_gradient, *_ = value_and_gradients(ours, *layer)
    expected = value_and_gradients(ours, *(tensor.to(half) for tensor in layer))
    assert y.dtype == half and torch.equal(y, expected[0])
    assert x_gradient.dtype == torch.float32 and torch.equal(x_gradient, expected[1].float())


def test_which_tiles():
    wide, narrow = float8_triton.WIDE, float8_triton.NARROW

    def chosen(*arguments):
        return float8_triton.choose(*arguments, sms=4, with_gelu=False)

    high, broad = 2 * wide.block_m, wide.block_n
    assert chosen(high * 4, broad * 2) == (wide, 8)
    assert chosen(high * 4 + 1, broad * 2) == (wide, 10)
    assert chosen(high * 4, broad)[0] == chosen(1, 16)[0] == narrow
    assert float8_triton.choose(high * 4, broad * 2, 4, with_gelu=True)[0] == narrow
    assert quantise_triton.ROW_BLOCKS[-1] == float8_linear.WIDEST_ROW


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 24, 16), "got 24 along I"),
        ((3, 16, 33), "got 33 along O"),
        ((0, 16_400, 16), "got 16400 along I"),
        ((3, 16, 33, 16), "got 33 along F"),
    ],
)
def test_refuses(device, shape, words):
    tensors = (random_layer if len(shape) == 3 else random_mlp)(*shape, DTYPES[0], device)
    with pytest.raises(ValueError, match=f"in Triton.*multiples of 16 up to 16384 only, {words}"):
        ours(*tensors)
