"""What the row kernel does with the result of a linear layer; the rest is that of `cosine_loss`."""

import pytest
import torch

from metamorph_kernels import linear_cosine_loss, reference
from tests.kernels.comparisons import Record, kept_for_backward, value_and_gradients
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
SHAPES = [(1, 8, 8), (7, 32, 96), (33, 25, 41), (5, 104, 16)]  # N, H, C
if not INTERPRETED:
    SHAPES += [(513, 4096, 1152), (7, 1000, 1000), (130, 64, 4096)]

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(rows, hidden, channels, dtype, device, seed=0):
    """x [N, H], weight [C, H], bias [C], target [N, C]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, hidden), (channels, hidden), (channels,), (rows, channels)]
    x, weight, bias, target = (torch.randn(shape, generator=generator) for shape in shapes)
    return [tensor.to(device, dtype) for tensor in (x, weight / hidden**0.5, bias, target)]


def ours(x, weight, bias, target, **options):
    return linear_cosine_loss(x, weight, bias, target, impl="triton", **options)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_against_float64(device, shape, dtype, reduction):
    *leaves, target = inputs(*shape, dtype, device)
    actual, truth = (
        value_and_gradients(lambda x, w, b, f=f, t=t: f(x, w, b, t, reduction=reduction), *tensors)
        for f, t, tensors in (
            (ours, target, leaves),
            (reference.linear_cosine_loss, target.double(), [leaf.double() for leaf in leaves]),
        )
    )
    assert actual[0].dtype == torch.float32
    for value, true in zip(actual, truth, strict=True):
        error = (value.double() - true).abs().max().item()
        assert error <= TOLERANCE[dtype] * max(1.0, true.abs().max().item())


def test_without_bias_and_with_a_target_of_its_own_dtype(device):
    x, weight, _, target = inputs(21, 32, 48, DTYPES[1], device)
    actual, truth = (
        value_and_gradients(lambda x, w, f=f, t=t: f(x, w, None, target.to(t)), *tensors)
        for f, t, tensors in (
            (ours, torch.float32, (x, weight)),
            (reference.linear_cosine_loss, torch.float64, (x.double(), weight.double())),
        )
    )
    for value, true in zip(actual, truth, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_rows_give_zero_and_gradients_of_zeros(device, reduction):
    *leaves, target = inputs(0, 16, 16, DTYPES[0], device)
    loss, *gradients = value_and_gradients(
        lambda x, w, b: ours(x, w, b, target, reduction=reduction), *leaves
    )
    assert loss.item() == 0 and all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_what_is_frozen_takes_no_product(device, wanted):
    *leaves, target = inputs(9, 16, 16, DTYPES[0], device)
    for leaf, wants in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(bool(wants))
    loss = ours(*leaves, target)
    with Record() as record:
        loss.backward()
    assert record.products == wanted[0] + wanted[1]
    assert [leaf.grad is not None for leaf in leaves] == [bool(wants) for wants in wanted]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_keeps_one_gradient_and_not_the_prediction(device, reduction):
    *leaves, target = inputs(9, 16, 24, DTYPES[0], device)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with kept_for_backward() as kept:
        ours(*leaves, target, reduction=reduction)
    own = {leaf.data_ptr() for leaf in leaves}
    [gradient] = [tensor for tensor in kept if tensor.data_ptr() not in own]
    assert gradient.shape == target.shape and gradient.dtype == DTYPES[0]


def test_compiled_equals_eager(device):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    *leaves, target = inputs(9, 16, 24, DTYPES[0], device)
    eager, traced = (
        value_and_gradients(lambda x, w, b, f=f: f(x, w, b, target), *leaves)
        for f in (ours, compiled)
    )
    for one, other in zip(eager, traced, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((3, 16, 16), torch.float64, "float64 runs in PyTorch only"),
        ((3, 1, 8193), torch.float16, "rows of at most 8192 only, got 8193"),
    ],
)
def test_refuses(device, shape, dtype, words):
    with pytest.raises(ValueError, match=f"impl: linear_cosine_loss cannot run in Triton.*{words}"):
        ours(*inputs(*shape, dtype, device))
