"""Several layers of one input: what each computes alone, with the input rounded once."""

import pytest
import torch

from metamorph_kernels import float8, linear_fp8, linears_fp8
from metamorph_kernels.float8 import E4M3, E5M2
from tests.kernels.comparisons import kept_for_backward, value_and_gradients
from tests.kernels.linear.float8_layers import random_layer, side_by_side

WIDTHS = (10, 48, 16)


def layers_of_one_input(dtype=torch.float32, biased=(True, True, True), rows=9):
    """x [9, 33], and of each layer its weight and its bias or None."""
    x, *_ = random_layer(rows, 33, 1, dtype)
    layers = [random_layer(1, 33, width, dtype, seed=width)[1:] for width in WIDTHS]
    return x, [
        (w, b if has_bias else None) for (w, b), has_bias in zip(layers, biased, strict=True)
    ]


@pytest.mark.parametrize("biased", [(True, True, True), (False, False, False), (True, False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_result_and_gradient_is_that_of_its_layer_alone(dtype, biased):
    x, layers = layers_of_one_input(dtype, biased)
    results, x_gradient, gradients = side_by_side(linears_fp8, x, layers)
    total = torch.zeros_like(x)
    for layer, result, found in zip(layers, results, gradients, strict=True):
        present = [tensor for tensor in layer if tensor is not None]
        [expected], of_x, [alone] = side_by_side(
            lambda x, weights, biases: [linear_fp8(x, *weights, *biases)], x, [layer]
        )
        assert torch.equal(result, expected) and len(found) == len(present)
        assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
        total += of_x
    assert torch.equal(x_gradient, total)


def test_the_input_is_rounded_once_each_way(monkeypatch):
    rounded = []
    for name in ("quantise_rows", "quantise_columns"):
        function = getattr(float8, name)

        def counted(tensor, dtype, *rest, name=name, function=function):
            rounded.append((name, tuple(tensor.shape)))
            return function(tensor, dtype, *rest)

        monkeypatch.setattr(float8, name, counted)
    x, layers = layers_of_one_input()
    with kept_for_backward() as kept:
        side_by_side(linears_fp8, x, layers)
    assert rounded.count(("quantise_rows", (9, 33))) == 1
    # PyTorch rounds columns as the rows of what is turned.
    assert rounded.count(("quantise_columns", (9, 33))) == 1
    assert sorted(tuple(tensor.shape) for tensor in kept) == sorted(
        [(9, 33), *((width, 33) for width in WIDTHS)]
    )


@pytest.mark.parametrize("frozen", ["x", "weights", "one weight"])
def test_what_is_frozen_changes_no_other_gradient(frozen):
    x, layers = layers_of_one_input()
    _, x_gradient, gradients = side_by_side(linears_fp8, x, layers)
    leaves = [x, *(tensor for layer in layers for tensor in layer)]
    still = {"x": [0], "weights": [1, 3, 5], "one weight": [3]}[frozen]
    for number, leaf in enumerate(leaves):
        leaf.requires_grad_(number not in still)
    results = linears_fp8(x, leaves[1::2], leaves[2::2])
    torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    expected = [x_gradient, *(gradient for layer in gradients for gradient in layer)]
    for number, (leaf, truth) in enumerate(zip(leaves, expected, strict=True)):
        assert leaf.grad is None if number in still else torch.equal(leaf.grad, truth)


def test_a_layer_that_is_frozen_with_x_has_no_part_in_the_backward():
    x, [(w1, _), (w2, b2), (w3, _)] = layers_of_one_input()
    first, second, third = linears_fp8(
        x, [w1, w2, w3.requires_grad_()], [None, b2.requires_grad_(), None]
    )
    assert [y.requires_grad for y in (first, second, third)] == [False, True, True]
    (second.sum() + third.sum()).backward()
    assert b2.grad.eq(9).all() and w3.grad.abs().max() > 0


def test_a_result_that_nobody_uses_has_no_gradient():
    x, layers = layers_of_one_input()
    x.requires_grad_()
    first, *_ = linears_fp8(x, [weight for weight, _ in layers])
    first.sum().backward()
    expected = x.detach().clone().requires_grad_()
    linear_fp8(expected, layers[0][0]).sum().backward()
    assert torch.equal(x.grad, expected.grad)


def test_leading_dimensions_and_no_rows():
    x, layers = layers_of_one_input(rows=6)
    weights = [weight for weight, _ in layers]
    flat = linears_fp8(x, weights)
    for leading in ((2, 3), (6, 1)):
        results = linears_fp8(x.view(*leading, 33), weights)
        assert [result.shape for result in results] == [(*leading, width) for width in WIDTHS]
        assert all(
            torch.equal(one.flatten(0, 1), other) for one, other in zip(results, flat, strict=True)
        )
    assert [y.shape for y in linears_fp8(x[:0], weights)] == [(0, width) for width in WIDTHS]


@pytest.mark.parametrize("on", [False, True])
def test_compiled_equals_eager_also_under_autocast(on):
    x, [(w1, b1), (w2, b2), _] = layers_of_one_input()

    def sum_of_two(x, w1, b1, w2, b2):
        one, other = linears_fp8(x, [w1, w2], [b1, b2])
        return one.sum() * other.square().mean()

    compiled = torch.compile(sum_of_two, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        with torch.no_grad():
            tensors = x, w1, b1, w2, b2
            assert torch.equal(compiled(*tensors), sum_of_two(*tensors))
        eager, traced = (value_and_gradients(f, x, w1, b1, w2, b2) for f in (sum_of_two, compiled))
    assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))


def test_in_float8_of_pytorch_too(monkeypatch):
    """The branch that a GPU takes, by the product that PyTorch has on a CPU."""
    x = random_layer(16, 48, 1, torch.bfloat16)[0]
    layers = [random_layer(1, 48, width, torch.bfloat16, seed=width)[1:] for width in (32, 16)]
    emulated, *_ = side_by_side(linears_fp8, x, layers)
    products = []
    scaled_mm = torch._scaled_mm

    def counted(*arguments, **options):
        products.append(arguments[0].dtype)
        return scaled_mm(*arguments, **options)

    monkeypatch.setattr(float8, "gpu_absence", lambda *arguments: None)
    monkeypatch.setattr(torch, "_scaled_mm", counted)
    native, *_ = side_by_side(linears_fp8, x, layers)
    assert products == [E4M3] * 2 + [E5M2] * 4
    for one, other in zip(native, emulated, strict=True):
        assert (one - other).norm() <= 0.01 * other.norm()


X = torch.ones(4, 33)


@pytest.mark.parametrize(
    ("weights", "biases", "words"),
    [
        ([], None, "weights: expected one or more, got none"),
        ([torch.ones(5, 33)], [], "biases: expected 1, one or None for each weight, got 0"),
        ([torch.ones(5, 33), torch.ones(5, 32)], None, r"x: .*\[..., 32\], got \[4, 33\]"),
        ([torch.ones(5, 33), torch.ones(5)], None, r"weights\[1\]: .*\[O, I\].*got \[5\]"),
        ([torch.ones(5, 33).half()], None, r"weights\[0\]: .*got torch.float16"),
        ([torch.ones(5, 33)] * 2, [None, torch.ones(4)], r"biases\[1\]: .*\[5\], got \[4\]"),
    ],
)
def test_refuses(weights, biases, words):
    with pytest.raises(ValueError, match=words):
        linears_fp8(X, weights, biases)


def test_there_is_one_derivative():
    x, layers = layers_of_one_input()
    with pytest.raises(NotImplementedError, match="linear_fp8 has no rule for torch.vmap"):
        torch.vmap(lambda row: linears_fp8(row[None], [layers[0][0]])[0])(x)
