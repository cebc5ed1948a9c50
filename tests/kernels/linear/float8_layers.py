"""Random layers, and what the definitions of the float8 ops make of them."""

import torch

from metamorph_kernels import reference
from tests.kernels.comparisons import value_and_gradients


def random_layer(rows, into, out, dtype=torch.float32, device="cpu", seed=0):
    """x [N, I], weight [O, I], bias [O]."""
    return _scaled([(rows, into), (out, into), (out,)], dtype, device, seed)


def random_mlp(rows, into, hidden, out, dtype=torch.float32, device="cpu", seed=0):
    """x [N, I], w1 [F, I], b1 [F], w2 [O, F], b2 [O]."""
    shapes = [(rows, into), (hidden, into), (hidden,), (out, hidden), (out,)]
    return _scaled(shapes, dtype, device, seed)


def _scaled(shapes, dtype, device, seed):
    """Normal numbers; weights, all but the first matrix, divided by the root of what they sum."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    for weight in tensors[1:]:
        if weight.dim() == 2:
            weight /= weight.shape[1] ** 0.5
    return [tensor.to(device, dtype) for tensor in tensors]


def side_by_side(function, x, layers):
    """Of several layers of one x, (weight, bias or None) each: their results, the gradient of x,
    and of each layer those of what it has, where all the results are added up."""
    leaves = [
        [None if t is None else t.clone().requires_grad_() for t in layer] for layer in layers
    ]
    x = x.clone().requires_grad_()
    results = function(x, *([layer[part] for layer in leaves] for part in (0, 1)))
    torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    gradients = [[leaf.grad for leaf in layer if leaf is not None] for layer in leaves]
    return [result.detach() for result in results], x.grad, gradients


def definition(*tensors):
    """Result and gradients of a layer or an MLP in float64, as `value_and_gradients` has them."""
    x, *weights, _ = tensors
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(len(x), len(weights[-1]), generator=generator, dtype=torch.float64)
    cotangent = cotangent.to(x)
    if len(tensors) == 3:
        gradients = reference.linear_fp8_gradients(cotangent, x, *weights)
        return [reference.linear_fp8(*tensors), *gradients]
    gradients = reference.mlp_gelu_fp8_gradients(cotangent, x, *weights)
    return [reference.mlp_gelu_fp8(*tensors), *gradients]


def errors(function, *tensors, truth=definition):
    """Root of the mean squared error over that of the truth, of the result and each gradient."""
    return [
        ((value.double() - true).norm() / true.norm()).item()
        for value, true in zip(
            value_and_gradients(function, *tensors), truth(*tensors), strict=True
        )
    ]
