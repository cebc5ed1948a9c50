"""What an op that is differentiable once, in reverse mode, answers to every other transform.

Kernels and backwards written by hand know their first derivative alone. Autograd would take the
gradient that they return for a constant: the second derivative would be missing without a word. So
the inputs and the result of such an op pass two gates that do nothing but raise NotImplementedError
for a second derivative, forward-mode differentiation and `torch.vmap`; the message names the op and
the way out. In a graph of torch.compile there are no gates: its result has no second derivative,
which PyTorch says itself, and transforms of torch.func that nest within it are refused here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from metamorph_kernels.backends import LANGUAGES
from metamorph_kernels.graphs import constant_in_graphs


@dataclass(frozen=True)
class OnceOnly:
    """Who refuses, such as "cosine_loss in Triton", and what to use instead.

    A graph of torch.compile may hold one transform of torch.func, or none where the gradient is not
    that of what is computed, as of rounding: there it would not ask for ours.
    """

    name: str
    way_out: str
    levels_in_graphs: int = 1

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """What `function` makes of the tensors; beyond a first gradient NotImplementedError."""
        if torch.compiler.is_compiling():
            check_graph(self.name, self.levels_in_graphs)
            return function(*tensors)
        if not may_be_transformed(tensors):
            return function(*tensors)
        *views, _ = _Inputs.apply(self, *tensors)
        return _Results.apply(self, *function(*views))

    def refuse(self, what: str) -> NotImplementedError:
        """The error for a transform of that name."""
        return NotImplementedError(f"{self.name} has no {what}; {self.way_out}")


def kernels_of(operation: str, backend: str) -> OnceOnly:
    """Who refuses for the kernels of an op whose PyTorch path can be transformed as one likes."""
    return OnceOnly(f"{operation} in {LANGUAGES[backend]}", "use impl='torch'")


class _Gate(torch.autograd.Function):
    """Refuses forward mode and batching of what passes; other tensors beside them it keeps."""

    @staticmethod
    def jvp(ctx, *tangents):
        raise ctx.once_only.refuse("forward-mode derivative")

    @staticmethod
    def vmap(info, in_dims, once_only, *tensors):
        raise once_only.refuse("rule for torch.vmap")


class _Inputs(_Gate):
    """Views of the tensors, and an anchor: a tensor [0] that hangs on them, but keeps none alive.

    The backward knows by the anchor where its gradients belong in a graph of second derivatives.
    """

    @staticmethod
    def forward(once_only: OnceOnly, *tensors: Tensor) -> tuple[Tensor, ...]:
        return *_views(tensors), tensors[0].new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.once_only, *_ = inputs
        *views, anchor = output
        _, *wanted = ctx.needs_input_grad
        frozen = [view for view, wants in zip(views, wanted, strict=True) if not wants]
        ctx.mark_non_differentiable(*frozen)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(anchor)

    @staticmethod
    def backward(ctx, *gradients):
        *gradients, _ = gradients
        if torch.is_grad_enabled():  # someone may differentiate the gradients
            present = [gradient for gradient in gradients if gradient is not None]
            _, *present = _Gradients.apply(ctx.once_only, *ctx.saved_tensors, *present)
            passed = iter(present)
            gradients = [None if gradient is None else next(passed) for gradient in gradients]
        return None, *gradients


class _Results(_Gate):
    """Views of the results; their gradients may not be batched."""

    @staticmethod
    def forward(once_only: OnceOnly, *results: Tensor) -> tuple[Tensor, ...]:
        return _views(results)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.once_only, *_ = inputs
        _, *wanted = ctx.needs_input_grad
        frozen = [view for view, wants in zip(output, wanted, strict=True) if not wants]
        ctx.mark_non_differentiable(*frozen)

    @staticmethod
    def backward(ctx, *gradients):
        return None, *_Gradients.apply(ctx.once_only, *gradients)


class _Gradients(_Gate):
    """Views of gradients, with no gradients of their own."""

    @staticmethod
    def forward(once_only: OnceOnly, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _views(gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.once_only, *_ = inputs

    @staticmethod
    def backward(ctx, *gradients):
        raise ctx.once_only.refuse("second derivative")


def check_graph(name: str, levels: int = 1) -> None:
    """NotImplementedError where torch.compile would make a wrong gradient, or a second derivative
    of zeros, of more than `levels` transforms of torch.func."""
    if torch.compiler.is_compiling() and _torch_func_levels() > levels:
        raise NotImplementedError(
            f"{name} takes no {'nested ' if levels else ''}transforms of torch.func in a graph of "
            "torch.compile; transform without torch.compile"
        )


def readable(tensor: Tensor) -> bool:
    """Whether the values can be checked on the host: not on a GPU, in a graph, in torch.func."""
    in_graph = torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and not in_graph and _torch_func_levels() == 0


def may_be_transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether, in eager mode, anything may be differentiated or batched of what comes of them."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    has_tangent = any(unpack_dual(tensor).tangent is not None for tensor in tensors)
    return has_tangent or _torch_func_levels() > 0


@constant_in_graphs
def _torch_func_levels() -> int:
    """How many transforms of torch.func are at work. Private, but the only way to ask."""
    return torch._C._functorch.maybe_current_level() or 0


def _views(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.view_as(tensor) for tensor in tensors)
