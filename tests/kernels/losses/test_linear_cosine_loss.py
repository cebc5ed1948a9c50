import pytest
import torch
import torch.nn.functional as F

from metamorph_kernels import LinearCosineLoss, cosine_loss, linear_cosine_loss, reference
from tests.kernels.comparisons import assert_as_good_as_plain, value_and_gradients


def inputs(rows=5, in_features=3, out_features=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (rows, in_features),
        (out_features, in_features),
        (out_features,),
        (rows, out_features),
    ]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 7)])
def test_equals_reference_and_gradcheck(shape, reduction):
    x, weight, bias, target = inputs(*shape)
    ours, oracle = (
        value_and_gradients(
            lambda x, w, b, f=f: f(x, w, b, target, reduction=reduction), x, weight, bias
        )
        for f in (linear_cosine_loss, reference.linear_cosine_loss)
    )
    torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-12)
    torch.autograd.gradcheck(
        lambda x, w, b: linear_cosine_loss(x, w, b, target, reduction=reduction),
        [tensor.requires_grad_() for tensor in (x, weight, bias)],
    )


def test_without_bias():
    x, weight, _, target = inputs()
    ours, oracle = (
        value_and_gradients(lambda x, w, f=f: f(x, w, None, target), x, weight)
        for f in (linear_cosine_loss, reference.linear_cosine_loss)
    )
    torch.testing.assert_close(ours, oracle)


def test_is_the_cosine_loss_of_the_linear_layer():
    x, weight, bias, target = inputs(dtype=torch.float32)
    expected = cosine_loss(F.linear(x, weight, bias), target)
    torch.testing.assert_close(linear_cosine_loss(x, weight, bias, target), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_rows_give_zero_and_gradients_of_zeros(reduction):
    tensors = [tensor.requires_grad_() for tensor in inputs(rows=0)]
    loss = linear_cosine_loss(*tensors, reduction=reduction)
    loss.backward()
    x, weight, bias, target = tensors
    assert loss.item() == 0 and x.grad.shape == x.shape and target.grad is None
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros_like(bias))


def test_predictions_and_targets_of_zeros_stay_finite():
    x, weight, _, target = inputs()
    x[1], target[2] = 0, 0
    losses, *gradients = value_and_gradients(
        lambda x, w: linear_cosine_loss(x, w, None, target, reduction="none"), x, weight
    )
    assert losses[1:3].eq(1).all() and gradients[0][1:3].eq(0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_bfloat16_is_as_good_as_plain_bfloat16():
    x, weight, bias, target = inputs(64, 48, 96)

    def plain(x, weight, bias, target):
        return 1 - F.cosine_similarity(F.linear(x, weight, bias), target.detach(), dim=-1)

    assert_as_good_as_plain(
        lambda *tensors: linear_cosine_loss(*tensors, reduction="none"),
        plain,
        x,
        weight,
        bias,
        target,
    )


def test_compiled_equals_eager_also_under_autocast():
    compiled = torch.compile(linear_cosine_loss, fullgraph=True, backend="aot_eager")
    x, weight, bias, target = inputs(dtype=torch.float32)
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            eager, traced = (
                value_and_gradients(lambda *a, f=f: f(*a, target), x, weight, bias)
                for f in (linear_cosine_loss, compiled)
            )
        torch.testing.assert_close(eager, traced, rtol=0, atol=0)
        assert eager[0].dtype == torch.float32 and eager[2].dtype == torch.float32


def test_the_bias_gradient_adds_up_in_float32():
    """In bfloat16 a sum of so many would stop growing at 256 times the first."""
    x, weight, bias, target = inputs(4096, 8, 8, torch.bfloat16)
    x, target = x[:1].expand(4096, 8), target[:1].expand(4096, 8)
    bias.requires_grad_()
    linear_cosine_loss(x, weight, bias, target, reduction="sum").backward()
    first = bias.grad.clone()
    bias.grad = None
    linear_cosine_loss(x[:1], weight, bias, target[:1], reduction="sum").backward()
    torch.testing.assert_close(first, 4096 * bias.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_module(bias):
    module = LinearCosineLoss(3, 7, bias, reduction="sum", dtype=torch.float64)
    assert list(module.state_dict()) == (["weight", "bias"] if bias else ["weight"])
    x, _, _, target = inputs()
    expected = reference.linear_cosine_loss(x, module.weight, module.bias, target, reduction="sum")
    torch.testing.assert_close(module(x, target), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(2, 5, 3)}, r"x: .*got \[2, 5, 3\]"),
        ({"weight": torch.ones(7, 4)}, r"weight: .*\[any, 3\], got \[7, 4\]"),
        ({"bias": torch.ones(6)}, r"bias: .*\[7\], got \[6\]"),
        ({"target": torch.ones(4, 7)}, r"target: .*\[5, 7\], got \[4, 7\]"),
        ({"weight": torch.ones(7, 3).half()}, "weight: .*got torch.float16"),
        ({"bias": torch.ones(7).double()}, "bias: .*got torch.float64"),
        ({"target": torch.ones(5, 7).int()}, "target: .*got torch.int32"),
        ({"target": torch.ones(5, 7, device="meta")}, "target: expected device cpu.*got meta"),
        ({"reduction": None}, "reduction: .*got None"),
        ({"impl": "numpy"}, "takes 'auto', 'triton', 'cuda', 'torch', got 'numpy'"),
        ({"impl": "cuda"}, r"impl: linear_cosine_loss cannot run in CUDA C\+\+ here: "),
    ],
)
def test_refuses(change, words):
    names = ("x", "weight", "bias", "target")
    arguments = dict(zip(names, inputs(dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        linear_cosine_loss(**arguments)
