import math

import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import float8, linear_fp8, mlp_gelu, mlp_gelu_fp8, reference
from metamorph_kernels.float8 import E4M3, E5M2, quantise_columns, quantise_rows
from tests.kernels.comparisons import kept_for_backward, value_and_gradients
from tests.kernels.linear.float8_layers import errors, random_layer, random_mlp

# Of one rounding of the result; the products are exact but for the order of their sums.
ROUNDING = {torch.float32: 3e-7, torch.float16: 4e-4, torch.bfloat16: 3e-3}
SHAPES = [(1, 1, 1), (7, 33, 96), (513, 96, 33), (33, 1152, 16), (16, 48, 1000)]  # N, I, O
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape, dtype):
    layer = random_layer(*shape, dtype)
    assert max(errors(linear_fp8, *layer)) < ROUNDING[dtype]
    x, weight, bias = layer
    without = value_and_gradients(linear_fp8, x, weight)
    biased = value_and_gradients(linear_fp8, x, weight, torch.zeros_like(bias))
    assert without[0].dtype == dtype
    assert all(torch.equal(one, other) for one, other in zip(without, biased, strict=False))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 33, 96, 10), (130, 48, 200, 64)], ids=str)
def test_mlp_equals_the_definition(shape, dtype):
    # float32 and float64 differ in the activation, which may fall to either side of a middle.
    assert max(errors(mlp_gelu_fp8, *random_mlp(*shape, dtype))) < ROUNDING[dtype] + 2e-3


def exact_layer(*tensors):
    return value_and_gradients(F.linear, *(tensor.double() for tensor in tensors))


def exact_mlp(*tensors):
    return value_and_gradients(reference.mlp_gelu, *(tensor.double() for tensor in tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_on_normal_data(dtype):
    """Of the result and of all gradients but that of the last bias, which is exact."""
    *measured, _ = errors(linear_fp8, *random_layer(1024, 1152, 2048, dtype), truth=exact_layer)
    assert measured == pytest.approx([0.026, 0.059, 0.059], rel=0.05)
    tensors = random_mlp(1024, 1152, 1024, 512, dtype)
    *measured, _ = errors(mlp_gelu_fp8, *tensors, truth=exact_mlp)
    assert measured == pytest.approx([0.033, 0.086, 0.086, 0.063, 0.066], rel=0.1)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (2, 0)])
def test_leading_dimensions(leading):
    _, weight, bias = random_layer(1, 33, 5)
    x = random_layer(math.prod(leading), 33, 5)[0].view(*leading, 33)
    y, *gradients = value_and_gradients(linear_fp8, x, weight, bias)
    flat, *flat_gradients = value_and_gradients(linear_fp8, x.reshape(-1, 33), weight, bias)
    assert y.shape == (*leading, 5) and torch.equal(y.view(-1, 5), flat)
    assert all(
        torch.equal(one.flatten(), other.flatten())
        for one, other in zip(gradients, flat_gradients, strict=True)
    )
    if 0 in leading:
        assert all(gradient.eq(0).all() for gradient in gradients)
        mlp = random_mlp(1, 33, 7, 5)
        assert mlp_gelu_fp8(x, *mlp[1:]).shape == (*leading, 5)


@pytest.mark.parametrize(("dtype", "largest"), [(E4M3, 448.0), (E5M2, 57344.0)])
def test_quantise_rows_is_the_cast_of_pytorch(dtype, largest):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    numbers = codes[codes.float().isfinite()].float()
    for scale in (1.0, 2.0**-100, 2.0**90):  # every number of the format comes back
        values, scales = quantise_rows((numbers * scale)[None], dtype)
        assert scales.tolist() == [scale] and values.shape[1] % 16 == 0
        assert torch.equal(values[0, : len(numbers)].float(), numbers)
        assert values[0, len(numbers) :].float().eq(0).all()

    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-30, 30, 50)[:, None]
    x *= torch.logspace(0, -6, 64)  # the last are subnormal, or vanish
    values, scales = quantise_rows(x, dtype)
    torch.testing.assert_close(scales, x.abs().amax(1) / largest)
    assert torch.equal(values.float(), (x / scales[:, None]).to(dtype).float())
    assert values.float().abs().amax(1).eq(largest).all()
    oracle = reference._rows_through_fp8(x, *(() if dtype == E4M3 else reference._E5M2))
    assert torch.equal(values.double() * scales.double()[:, None], oracle)

    turned, turned_scales = quantise_columns(x[:30].t(), dtype)
    assert turned.is_contiguous() and torch.equal(turned_scales, scales[:30])
    assert torch.equal(turned.view(torch.uint8), values[:30].view(torch.uint8))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_rows_that_have_no_scale(dtype):
    largest = torch.finfo(dtype).max
    x = torch.ones(6, 16)
    x[0] = 0
    x[1] = 1e-45  # its scale underflows to 0
    x[2] = 4 * largest * 1.4e-45  # a scale of few bits
    x[3, 4], x[4, 5], x[5, 6] = math.nan, math.inf, -math.inf
    values, scales = quantise_rows(x, dtype)
    assert scales[:2].eq(1).all() and values[:2].float().eq(0).all()
    assert values[2].float().eq(largest).all()
    assert (values[3:].float() * scales[3:, None]).isnan().all()
    x = torch.full((1, 16), 600 * 1.4e-45)  # 600 steps / 448 rounds to one step
    assert quantise_rows(x, E4M3)[0].float().eq(448).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(bad):
    x, weight, bias = random_layer(7, 33, 10)
    others = [0, 1, 2, 4, 5, 6]
    expected = linear_fp8(x, weight, bias)[others]
    x[3, 5] = bad
    y = linear_fp8(x, weight, bias)
    assert y[3].isnan().all() and torch.equal(y[others], expected)
    x, weight, bias = random_layer(7, 33, 10)
    weight[4, 5] = bad
    y = linear_fp8(x, weight, bias)
    assert y[:, 4].isnan().all() and y[:, [*range(4), *range(5, 10)]].isfinite().all()

    x = random_layer(7, 33, 10)[0].requires_grad_()
    gradient = torch.ones(7, 10)
    gradient[2, 1] = bad
    linear_fp8(x, random_layer(7, 33, 10)[1]).backward(gradient)
    assert x.grad[2].isnan().all() and x.grad[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_zeros_give_the_bias_and_no_gradient():
    x, weight, bias = random_layer(5, 33, 10)
    y, x_gradient, weight_gradient, _ = value_and_gradients(
        linear_fp8, torch.zeros_like(x), weight, bias
    )
    assert torch.equal(y, bias.expand(5, 10)) and weight_gradient.eq(0).all()
    assert x_gradient.ne(0).any()


def test_rows_of_very_different_size_keep_their_precision():
    x, weight, bias = random_layer(40, 64, 32)
    sizes = torch.logspace(-6, 6, 40)[:, None]
    y = linear_fp8(x * sizes, weight) / sizes
    torch.testing.assert_close(y, linear_fp8(x, weight), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("wanted", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_what_is_frozen_takes_no_product_and_keeps_nothing(wanted, monkeypatch):
    calls = []
    for name in ("quantise", "scaled_product"):
        function = getattr(float8, name)

        def counted(*arguments, name=name, function=function, **keywords):
            calls.append(name)
            return function(*arguments, **keywords)

        monkeypatch.setattr(float8, name, counted)
    x, weight, bias = leaves = random_layer(9, 33, 10)
    for leaf, wants in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(bool(wants))
    with kept_for_backward() as kept:
        y = linear_fp8(x, weight, bias)
    product = ["quantise", "quantise", "scaled_product"]
    assert calls == product
    expected = [x] * wanted[1] + [weight] * wanted[0]
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in expected]
    if any(wanted):
        y.sum().backward()
    assert sorted(calls) == sorted(product * (1 + wanted[0] + wanted[1]))
    assert [leaf.grad is not None for leaf in leaves] == [bool(wants) for wants in wanted]


def test_mlp_keeps_x_and_the_state_before_gelu():
    x, w1, b1, w2, b2 = leaves = random_mlp(9, 33, 48, 10, torch.bfloat16)
    for leaf in leaves:
        leaf.requires_grad_()
    with kept_for_backward() as kept:
        mlp_gelu_fp8(*leaves)
    own = [tensor for tensor in kept if tensor.data_ptr() not in (w1.data_ptr(), w2.data_ptr())]
    assert [tuple(tensor.shape) for tensor in own] == [(9, 33), (9, 48)]
    assert all(tensor.dtype == torch.bfloat16 for tensor in own)


def test_frozen_parts_of_an_mlp_do_not_change_the_other_gradients():
    tensors = random_mlp(9, 33, 48, 10)
    _, *expected = value_and_gradients(mlp_gelu_fp8, *tensors)
    for number, truth in enumerate(expected):
        leaves = [tensor.clone() for tensor in tensors]
        leaves[number].requires_grad_()
        mlp = mlp_gelu_fp8(*leaves)
        generator = torch.Generator().manual_seed(0)
        mlp.backward(torch.randn(mlp.shape, generator=generator, dtype=torch.float64).to(mlp))
        assert torch.equal(leaves[number].grad, truth)


def test_mlp_is_an_mlp_with_the_exact_gelu():
    x = torch.linspace(-4, 4, 257)[:, None]  # numbers of one column are rounded together
    one, zero = torch.ones(1, 1), torch.zeros(1)
    out = mlp_gelu_fp8(x, one, zero, one, zero)  # a row of one number keeps it
    torch.testing.assert_close(out, F.gelu(x), rtol=1e-6, atol=2e-6)
    tensors = random_mlp(64, 96, 128, 48)
    exact = mlp_gelu(*tensors)
    assert (mlp_gelu_fp8(*tensors) - exact).norm() / exact.norm() < 0.04


@pytest.mark.parametrize(("op", "inputs"), [(linear_fp8, random_layer), (mlp_gelu_fp8, random_mlp)])
def test_autocast_is_the_dtype_it_casts_to(op, inputs):
    tensors = inputs(*(9, 33, 48, 10)[: 3 if op is linear_fp8 else 4])
    with torch.autocast("cpu", torch.bfloat16):
        y, *gradients = value_and_gradients(op, *tensors)
    half = value_and_gradients(op, *(tensor.bfloat16() for tensor in tensors))
    assert y.dtype == torch.bfloat16 and torch.equal(y, half[0])
    for gradient, expected in zip(gradients, half[1:], strict=True):
        assert gradient.dtype == torch.float32 and torch.equal(gradient, expected.float())


def test_backward_under_autocast_changes_nothing():
    leaves = [tensor.requires_grad_() for tensor in random_layer(9, 33, 48)]
    linear_fp8(*leaves).sum().backward()
    expected = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    y = linear_fp8(*leaves)
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
    assert all(torch.equal(leaf.grad, truth) for leaf, truth in zip(leaves, expected, strict=True))


@pytest.mark.parametrize(("op", "inputs"), [(linear_fp8, random_layer), (mlp_gelu_fp8, random_mlp)])
def test_compiled_equals_eager_also_under_autocast(op, inputs):
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for rows, on in ((9, False), (30, False), (9, True)):
        tensors = inputs(*(rows, 33, 48, 10)[: 3 if op is linear_fp8 else 4])
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            eager, traced = (value_and_gradients(f, *tensors) for f in (op, compiled))
        assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_products_in_float8_equal_the_emulation(rows, monkeypatch):
    """PyTorch's CPU has them too; the branch is the one that a GPU takes."""
    tensors = random_mlp(rows, 48, 64, 32, torch.bfloat16)
    emulated = value_and_gradients(mlp_gelu_fp8, *tensors)
    calls = []
    scaled_mm = torch._scaled_mm

    def recorded(a, b, a_scales, b_scales, bias, **options):
        assert a.is_contiguous() and b.t().is_contiguous() and b.dtype == E4M3
        assert a.shape[1] % 16 == 0 and b.shape[1] % 16 == 0
        calls.append((a.dtype, options["use_fast_accum"]))
        return scaled_mm(a, b, a_scales, b_scales, bias, **options)

    monkeypatch.setattr(float8, "gpu_absence", lambda *arguments: None)
    monkeypatch.setattr(torch, "_scaled_mm", recorded)
    native = value_and_gradients(mlp_gelu_fp8, *tensors)
    assert calls == [(E4M3, False)] * 2 + [(E5M2, False)] * 4
    for one, other in zip(native, emulated, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert (one - other).norm() <= 0.01 * other.norm()

    calls.clear()  # float32 results, and rows of 33, are emulated
    value_and_gradients(linear_fp8, *random_layer(rows, 48, 64))
    value_and_gradients(linear_fp8, *random_layer(rows, 33, 33, torch.bfloat16))
    assert not calls


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(4, 4)}, r"x: .*\[..., 33\], got \[4, 4\]"),
        ({"x": torch.ones(())}, r"x: .*got \[\]"),
        ({"x": torch.ones(4, 33).int()}, "x: .*got torch.int32"),
        ({"weight": torch.ones(5)}, r"weight: .*\[O, I\].*got \[5\]"),
        ({"weight": torch.ones(10, 33).half()}, "weight: .*got torch.float16"),
        ({"bias": torch.ones(4)}, r"bias: .*\[10\], got \[4\]"),
        ({"bias": torch.ones(10, device="meta")}, "bias: expected device cpu.*got meta"),
        ({"impl": "cuda"}, "impl: linear_fp8 takes 'auto', 'triton', 'torch', got 'cuda'"),
    ],
)
def test_refuses(change, words):
    arguments = dict(zip(("x", "weight", "bias"), random_layer(4, 33, 10), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        linear_fp8(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w1": torch.ones(48, 32)}, r"x: .*\[..., 32\], got \[4, 33\]"),
        ({"b1": torch.ones(4)}, r"b1: .*\[48\], got \[4\]"),
        ({"w2": torch.ones(10, 4)}, r"w2: .*\[any, 48\], got \[10, 4\]"),
        ({"b2": torch.ones(3)}, r"b2: .*\[10\], got \[3\]"),
        ({"b2": None}, "b2: expected a tensor, got NoneType"),
        ({"impl": "cuda"}, "impl: mlp_gelu_fp8 takes 'auto', 'triton', 'torch', got 'cuda'"),
    ],
)
def test_mlp_refuses(change, words):
    names = ("x", "w1", "b1", "w2", "b2")
    arguments = dict(zip(names, random_mlp(4, 33, 48, 10), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        mlp_gelu_fp8(**arguments)


@pytest.mark.parametrize("op", [linear_fp8, mlp_gelu_fp8])
def test_refuses_float64(op):
    tensors = random_layer(4, 3, 2) if op is linear_fp8 else random_mlp(4, 3, 2, 5)
    with pytest.raises(ValueError, match="x: expected float32, bfloat16 or float16, got .*float64"):
        op(*(tensor.double() for tensor in tensors))
