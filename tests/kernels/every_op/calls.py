"""A small call of every public op that computes with tensors, which Triton can run too."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import metamorph_kernels
from metamorph_kernels import key_intervals, prefill_row


@dataclass(frozen=True)
class Call:
    """Floating tensors by argument, as shapes, and the rest of what the op is given."""

    operation: str
    shapes: dict[str, tuple[int, ...]]
    rest: Callable[[], dict] = field(default=dict)  # arguments that are no floating tensors
    dtype: torch.dtype = torch.float64  # of the PyTorch path, the widest
    no_gradient: tuple[str, ...] = ()

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in self.shapes.items()
        }

    def __call__(self, impl: str = "torch", **tensors: Tensor) -> Tensor:
        operation = getattr(metamorph_kernels, self.operation)
        return operation(**(self.rest() | tensors), impl=impl)


HEADS = {"q": (5, 2, 64), "k": (5, 1, 64), "v": (5, 1, 64)}
LAYER = {"x": (3, 16), "weight": (32, 16), "bias": (32,)}
MLP = {"x": (3, 16), "w1": (32, 16), "b1": (32,), "w2": (16, 32), "b2": (16,)}


def intervals() -> dict:
    return {"intervals": key_intervals([3, 2], [(0, 2)])}


CALLS = [
    Call("interval_attention", HEADS, intervals),
    Call("interval_attention_fp8", HEADS, intervals, torch.float32, tuple(HEADS)),
    Call(
        "decode_attention",
        {"q": (2, 2, 64), "k_cache": (2, 4, 1, 64), "v_cache": (2, 4, 1, 64)},
        lambda: {"lengths": torch.tensor([3, 4])},
    ),
    Call(
        "prefill_attention",
        {"q": (5, 2, 64), "k_cache": (2, 4, 1, 64), "v_cache": (2, 4, 1, 64)},
        lambda: {"row": prefill_row([(1, 1, 2), (0, 0, 3)], [(2, 4)])},
    ),
    Call("cosine_loss", {"prediction": (3, 16), "target": (3, 16)}, no_gradient=("target",)),
    Call("linear_cosine_loss", LAYER | {"target": (3, 32)}, no_gradient=("target",)),
    Call(
        "linear_cross_entropy",
        {"x": (3, 16), "weight": (7, 16)},
        lambda: {"labels": torch.tensor([2, -100, 6])},
    ),
    Call("linear_fp8", LAYER, dtype=torch.float32),
    Call("mlp_gelu", MLP),
    Call("mlp_gelu_fp8", MLP, dtype=torch.float32),
    Call("pool_normalize", {"features": (2, 9, 16)}, lambda: {"grid": 2}),
]
