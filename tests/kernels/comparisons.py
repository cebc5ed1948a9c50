"""Results with their gradients, errors beside plain bfloat16, and a record of what ran."""

from contextlib import contextmanager

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


def value_and_gradients(function, *tensors, seed=0):
    """The result, then its gradients for the floating tensors under a fixed random cotangent."""
    leaves = [
        tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in tensors
    ]
    result = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    result.backward(cotangent.to(result))
    return [result.detach()] + [leaf.grad for leaf in leaves if leaf.is_floating_point()]


def assert_as_good_as_plain(function, plain, *tensors):
    """In bfloat16 `function` errs at most twice as much as `plain`, both against float64.

    That is of roots of mean squares. Largest errors, where one rounding on one CPU makes twice
    another, may be four times those of `plain`.
    """
    half = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in tensors]
    exact = [tensor.double() if tensor.is_floating_point() else tensor for tensor in half]
    truth = value_and_gradients(plain, *exact)
    errors = [
        [
            None if value is None else value.double() - true
            for value, true in zip(value_and_gradients(candidate, *half), truth, strict=True)
        ]
        for candidate in (function, plain)
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.norm() <= 2 * theirs.norm() + 1e-6
            assert ours.abs().max() <= 4 * theirs.abs().max() + 1e-6


def assert_as_close_as_plain(out, plain, exact, tolerance, note):
    """`out` is `exact`, float64, within `tolerance`, or within twice the largest error of `plain`,
    which is PyTorch's in the same dtype: where scores are large, their rounding decides, on each
    CPU another."""
    atol = max(tolerance, 2 * float((plain.double() - exact).abs().max()))
    torch.testing.assert_close(
        out.double(), exact, rtol=tolerance, atol=atol, msg=lambda message: note + message
    )


@contextmanager
def kept_for_backward():
    """A list of the tensors that are saved meanwhile, but for anchors, [0], which hold nothing."""
    kept = []

    def keep(tensor):
        if tensor.shape != (0,):
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


MATRIX_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)


class Record(TorchDispatchMode):
    """The most elements of any tensor made, and the number of matrix products."""

    def __init__(self):
        super().__init__()
        self.elements, self.products = 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.products += function in MATRIX_PRODUCTS
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result
