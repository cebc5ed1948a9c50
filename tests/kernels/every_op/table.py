"""Which transforms each op takes, and which it refuses by name; by every way there is to ask.

`EVERYTHING` of a PyTorch path is a composition of PyTorch's own ops; of the others the first
gradient is what they have.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

EVERYTHING = ("cosine_loss", "linear_cosine_loss", "mlp_gelu", "pool_normalize")
# Everything, within SDPBackend.MATH.
WRITTEN_OUT = ("interval_attention", "decode_attention", "prefill_attention")
NO_BACKWARD = ("decode_attention", "prefill_attention", "interval_attention_fp8")  # in Triton


def penalty(scalar, x):
    """A gradient penalty beside the function itself: autograd must not take its gradient for 0."""
    leaf = x.clone().requires_grad_()
    value = scalar(leaf)
    [gradient] = torch.autograd.grad(value, leaf, create_graph=True)
    (value + gradient.square().sum()).backward()
    return leaf.grad


def penalty_alone(scalar, x):
    leaf = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(scalar(leaf), leaf, create_graph=True)
    gradient.square().sum().backward()
    return leaf.grad


def twice(scalar, x):
    gradient = torch.func.grad(scalar)
    return torch.func.grad(lambda x: gradient(x).square().sum())(x)


def dual_numbers(scalar, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(scalar(forward_ad.make_dual(x, x))).tangent


def batched(function):
    return lambda scalar, x: function(scalar)(torch.stack([x, x.flip(0)]))


BEYOND_ONE_GRADIENT = {
    "penalty": penalty,
    "penalty alone": penalty_alone,
    "twice": twice,
    "vmap": batched(torch.vmap),
    "vmap of grad": batched(lambda scalar: torch.vmap(torch.func.grad(scalar))),
    "jvp": lambda scalar, x: torch.func.jvp(scalar, (x,), (x,))[1],
    "dual numbers": dual_numbers,
    "jacfwd": lambda scalar, x: torch.func.jacfwd(scalar)(x),
    "jacrev": lambda scalar, x: torch.func.jacrev(scalar)(x),
    "hessian": lambda scalar, x: torch.func.hessian(scalar)(x),
}


def as_scalar(call, tensors, name, impl):
    """The call as a scalar function of one argument; a power, because lengths of 1 are constant."""
    return lambda x: call(impl, **(tensors | {name: x})).pow(3).sum()


def first_gradients(scalar, x):
    """By autograd, `grad` and `vjp`."""
    leaf = x.clone().requires_grad_()
    scalar(leaf).backward()
    [pulled] = torch.func.vjp(scalar, x)[1](torch.ones((), dtype=x.dtype))
    return leaf.grad, torch.func.grad(scalar)(x), pulled


def check_first_gradients(call, impl, dtype, most=None):
    tensors = call.tensors(dtype)
    for name, x in list(tensors.items())[:most]:
        if name not in call.no_gradient:
            scalar = as_scalar(call, tensors, name, impl)
            expected, *others = first_gradients(scalar, x)
            for other in others:
                torch.testing.assert_close(other, expected)


def check_refused(call, impl, dtype, how, matmul=nullcontext):
    tensors = call.tensors(dtype)
    name = next(iter(tensors))
    scalar = as_scalar(call, tensors, name, impl)
    if impl == "triton" and call.operation in NO_BACKWARD or name in call.no_gradient:
        # It says so before the gates do.
        expected = pytest.raises((NotImplementedError, ValueError), match=call.operation)
    else:
        expected = pytest.raises(NotImplementedError, match=f"{call.operation}.* has no .*; use ")
    with expected:
        BEYOND_ONE_GRADIENT[how](scalar, tensors[name])


def written_out(operation):
    return sdpa_kernel(SDPBackend.MATH) if operation in WRITTEN_OUT else nullcontext()
