"""Second derivatives, forward mode, vmap: of every op in PyTorch right, or refused by its name."""

import pytest
import torch

from metamorph_kernels import LinearCosineLoss, LinearCrossEntropy, MLPGelu, backends
from tests.kernels.every_op.calls import CALLS
from tests.kernels.every_op.table import (
    BEYOND_ONE_GRADIENT,
    EVERYTHING,
    WRITTEN_OUT,
    as_scalar,
    check_first_gradients,
    check_refused,
    written_out,
)

BY_NAME = {call.operation: call for call in CALLS}


def test_the_table_has_every_op():
    assert set(BY_NAME) == set(backends.IMPLEMENTED)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operation)
def test_first_gradients_are_the_same_by_every_way(call):
    check_first_gradients(call, "torch", call.dtype)


def reference(call, tensors, name):
    """The same scalar through the plain definition, which autograd differentiates as often."""
    from metamorph_kernels import reference as definitions

    operation = getattr(definitions, call.operation)
    return lambda x: operation(**(call.rest() | tensors | {name: x})).pow(3).sum()


@pytest.mark.parametrize("how", BEYOND_ONE_GRADIENT)
@pytest.mark.parametrize("operation", EVERYTHING + WRITTEN_OUT)
def test_compositions_of_pytorch_take_every_transform(operation, how):
    call, transform = BY_NAME[operation], BEYOND_ONE_GRADIENT[how]
    tensors = call.tensors(torch.float64)
    for name, x in list(tensors.items())[:2]:
        if name in call.no_gradient:
            continue
        with written_out(operation):
            found = transform(as_scalar(call, tensors, name, "torch"), x)
        if "vmap" in how:  # each of the batch by itself
            scalar = as_scalar(call, tensors, name, "torch")
            single = scalar if how == "vmap" else torch.func.grad(scalar)
            with written_out(operation):
                expected = torch.stack([single(x), single(x.flip(0))])
        else:
            expected = transform(reference(call, tensors, name), x)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("how", BEYOND_ONE_GRADIENT)
@pytest.mark.parametrize("operation", [name for name in BY_NAME if name not in EVERYTHING])
def test_the_others_refuse_by_name_and_say_what_to_use(operation, how):
    if operation == "linear_cross_entropy" and how == "jacrev":
        how = "vmap"  # a scalar has nothing to batch
    check_refused(BY_NAME[operation], "torch", BY_NAME[operation].dtype, how)


@pytest.mark.parametrize("rows", [1.0, 0.0, 1e-30])
def test_second_derivatives_at_rows_without_direction_are_zero(rows):
    for operation, name in (("cosine_loss", "prediction"), ("pool_normalize", "features")):
        call = BY_NAME[operation]
        tensors = call.tensors(torch.float32)
        tensors[name] = tensors[name] * rows
        leaf = tensors[name].requires_grad_()
        out = call(**tensors).pow(3).sum()
        [gradient] = torch.autograd.grad(out, leaf, create_graph=True)
        assert gradient.isfinite().all()
        gradient.square().sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    ("module", "others", "right"),
    [
        (LinearCosineLoss(4, 3), (torch.ones(2, 3),), True),
        (LinearCrossEntropy(4, 3), (torch.tensor([0, 2]),), False),
        (MLPGelu(4, 5, 3), (), True),
    ],
    ids=["LinearCosineLoss", "LinearCrossEntropy", "MLPGelu"],
)
def test_modules_under_every_reduction(module, others, right, reduction):
    module.reduction = reduction
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    weights = dict(module.named_parameters())

    def loss(weights):
        return torch.func.functional_call(module, weights, (x, *others)).pow(2).sum()

    gradients = torch.func.grad(loss)(weights)
    expected = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True)
    for gradient, other in zip(gradients.values(), expected, strict=True):
        torch.testing.assert_close(gradient, other)
    norm = sum(gradient.square().sum() for gradient in expected)
    if right:
        norm.backward()
    else:
        with pytest.raises(NotImplementedError, match="linear_cross_entropy has no second"):
            norm.backward()


@pytest.mark.parametrize("operation", ["linear_cosine_loss", "linear_fp8"])
def test_a_graph_of_torch_compile_refuses_second_derivatives(operation):
    call = BY_NAME[operation]
    tensors = call.tensors(torch.float32)
    scalar = as_scalar(call, tensors, "x", "torch")
    leaf = tensors["x"].clone().requires_grad_()
    compiled = torch.compile(scalar, backend="aot_eager", fullgraph=True)
    [gradient] = torch.autograd.grad(compiled(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.square().sum().backward()

    def twice(x):
        return torch.func.grad(lambda x: torch.func.grad(scalar)(x).square().sum())(x)

    with pytest.raises(RuntimeError, match="takes no (nested )?transforms of torch.func"):
        torch.compile(twice, backend="eager", fullgraph=True)(tensors["x"])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operation)
def test_a_gradient_of_torch_func_in_a_graph_is_right_or_refused(call):
    tensors = call.tensors(torch.float32)
    if "attention" in call.operation or call.operation == "linear_cross_entropy":
        pytest.skip("torch.compile itself refuses what reads numbers on the host")
    *_, name = [name for name in tensors if name not in call.no_gradient]
    name = next((weight for weight in ("weight", "w1") if weight in tensors), name)
    scalar = as_scalar(call, tensors, name, "torch")
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(scalar), backend="eager", fullgraph=True)
    if call.operation.endswith("fp8"):
        with pytest.raises(RuntimeError, match="takes no transforms of torch.func"):
            compiled(tensors[name])
    else:
        torch.testing.assert_close(compiled(tensors[name]), torch.func.grad(scalar)(tensors[name]))
