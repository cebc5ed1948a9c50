"""`mlp_gelu` in Triton: launches of the two products that meet the GELU; the rest is cuBLAS's."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.descriptors import describable
from metamorph_kernels.linear.linear_gelu import linear_gelu, linear_gelu_gradient
from metamorph_kernels.multiprocessors import multiprocessors

HOPPER_SMS = 132
WIDTH = 64  # columns of a step of an epilogue
STATE_WIDTH = 128  # columns of the state that the gradient loads at a time


@dataclass(frozen=True)
class Tiles:
    """Rows, features and inner steps of one tile of a product; programs that share an SM."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    residents: int = 1


# Of two bytes an element, largest first. The first is as large as registers allow: 128 sums a
# thread. Of the small ones two share an SM: the tensor cores work for one while the other
# computes its GELU.
TILES = [
    Tiles(128, 256, 64, num_warps=8, num_stages=3),
    Tiles(128, 128, 64, num_warps=8, num_stages=3),
    Tiles(64, 128, 64, num_warps=4, num_stages=3, residents=2),
    Tiles(64, 64, 64, num_warps=4, num_stages=5, residents=2),
    Tiles(64, 32, 64, num_warps=4, num_stages=6, residents=2),
]
FLOAT32_TILES = Tiles(16, 32, 32, num_warps=4, num_stages=1)  # for tests of exactness


def choose(rows: int, features: int, element_size: int) -> Tiles:
    """The tiles with which the busiest SM reads least, so that few rows fill a GPU.

    A model: at about 40 bytes a clock and SM from the L2 cache, a step of any of them is
    bound by what it reads, which is proportional to block_m + block_n: 1,229 clocks of 128 x 256,
    for which the tensor cores need 1,024, and 819 of half of it, for which they need 512. So one
    wide tile on an SM beats two of half its width, which lose 7,400 clocks in the 18 steps of
    1,152 features and 26,000 in the 64 of 4,096, although nothing then hides its epilogue: by count
    of instructions 5,400 clocks forward and 7,800 backward. Without a tile for most SMs, or
    with little for a last wave, smaller ones win.

    Smaller tiles stand in for a split of the inner dimension: that would leave the GELU, which
    needs whole sums, to a pass of its own.
    """
    if element_size == 4:
        return FLOAT32_TILES

    def reads(tiles: Tiles) -> int:
        count = triton.cdiv(rows, tiles.block_m) * triton.cdiv(features, tiles.block_n)
        waves = max(triton.cdiv(count, HOPPER_SMS), 1)
        return waves * (tiles.block_m + tiles.block_n)

    return min(TILES, key=reads)


def mlp_gelu_triton(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep_activation: bool
) -> Tensor:
    """[N, O] of checked arguments, x [N, I]."""
    tensors = (x, w1, b1, w2, b2)
    wanted = tuple(tensor.requires_grad for tensor in tensors)
    if torch.is_grad_enabled() and any(wanted):
        *before_gelu, wants_w2, _ = wanted
        # Without a gradient to pass through the GELU, its result is all that the backward needs.
        keep_activation = wants_w2 and (keep_activation or not any(before_gelu))
        out, _, _ = _MLPGelu.apply(*tensors, any(before_gelu), keep_activation)
        return out
    _, activation = linear_gelu_rows(x, w1, b1, False)
    return torch.addmm(b2, activation, w2.t())


class _MLPGelu(torch.autograd.Function):
    """Keeps the state before the GELU, from which one epilogue of the backward has it all again."""

    @staticmethod
    def forward(x, w1, b1, w2, b2, keep_state, keep_activation):
        state, activation = linear_gelu_rows(x, w1, b1, keep_state)
        out = torch.addmm(b2, activation, w2.t())
        return out, state, activation if keep_activation else None

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w1, _, w2, _, _, _ = inputs
        _, *kept = output
        ctx.mark_non_differentiable(*(tensor for tensor in kept if tensor is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w1, w2, *kept)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        x, w1, w2, state, activation = ctx.saved_tensors
        wants_x, wants_w1, wants_b1, wants_w2, wants_b2, _, _ = ctx.needs_input_grad
        state_gradient = b1_gradient = None
        if wants_x or wants_w1 or wants_b1:
            wants_activation = wants_w2 and activation is None
            state_gradient, again, b1_gradient = linear_gelu_backward(
                gradient, w2, state, wants_activation, wants_b1
            )
            activation = again if wants_activation else activation
        return (
            state_gradient @ w1 if wants_x else None,
            state_gradient.t() @ x if wants_w1 else None,
            b1_gradient.to(w1.dtype) if wants_b1 else None,
            gradient.t() @ activation if wants_w2 else None,
            gradient.sum(0, dtype=torch.float32).to(w2.dtype) if wants_b2 else None,
            None,
            None,
        )


@torch.library.custom_op("metamorph_kernels::linear_gelu_rows", mutates_args=())
def linear_gelu_rows(
    x: Tensor,  # [N, I]
    weight: Tensor,  # [F, I]
    bias: Tensor,  # [F]
    keep_state: bool,
) -> tuple[Tensor, Tensor]:
    """x weight^T + bias, [N, F] or, unless kept, [0, F]; and its GELU, [N, F]."""
    rows, features = x.shape[0], weight.shape[0]
    out = x.new_empty((rows, features))
    state = x.new_empty((rows if keep_state else 0, features))
    if rows == 0:
        return state, out
    tiles = choose(rows, features, x.element_size())
    x, weight = map(describable, (x, weight))
    strip = [tiles.block_m, min(tiles.block_n, WIDTH)]
    with torch.cuda.device_of(x):
        linear_gelu[_programs(x, features, tiles)](
            TensorDescriptor.from_tensor(x, [tiles.block_m, tiles.block_k]),
            TensorDescriptor.from_tensor(weight, [tiles.block_n, tiles.block_k]),
            bias.contiguous(),
            TensorDescriptor.from_tensor(state, strip) if keep_state else None,
            TensorDescriptor.from_tensor(out, strip),
            rows,
            features,
            x.shape[1],
            **_layout(tiles),
        )
    return state, out


@linear_gelu_rows.register_fake
def _(x, weight, bias, keep_state):
    rows, features = x.shape[0], weight.shape[0]
    return x.new_empty((rows if keep_state else 0, features)), x.new_empty((rows, features))


@torch.library.custom_op("metamorph_kernels::linear_gelu_backward", mutates_args=())
def linear_gelu_backward(
    gradient: Tensor,  # of the output of the second layer, [N, O]
    weight: Tensor,  # of the second layer, [O, F]
    state: Tensor,  # [N, F]
    wants_activation: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the state [N, F]; its GELU [N, F] or [0, F]; gradient of the bias float32 [F]
    or [0]."""
    rows, features = state.shape
    tiles = choose(rows, features, state.element_size())
    results = _backward_results(state, wants_activation, wants_bias)
    if rows == 0:
        return results
    state_gradient, activation, _ = results
    parts = triton.cdiv(rows, tiles.block_m) if wants_bias else 0
    sums = state.new_empty((parts, features), dtype=torch.float32)
    gradient, weight = map(describable, (gradient, weight))
    strip = [tiles.block_m, min(tiles.block_n, WIDTH)]
    part = [tiles.block_m, min(tiles.block_n, STATE_WIDTH)]
    with torch.cuda.device_of(state):
        linear_gelu_gradient[_programs(state, features, tiles)](
            TensorDescriptor.from_tensor(gradient, [tiles.block_m, tiles.block_k]),
            TensorDescriptor.from_tensor(weight, [tiles.block_k, tiles.block_n]),
            TensorDescriptor.from_tensor(state, part),
            TensorDescriptor.from_tensor(state_gradient, strip),
            TensorDescriptor.from_tensor(activation, strip) if wants_activation else None,
            sums if wants_bias else None,
            rows,
            features,
            gradient.shape[1],
            **_layout(tiles),
        )
    return state_gradient, activation, sums.sum(0) if wants_bias else results[2]


@linear_gelu_backward.register_fake
def _(gradient, weight, state, wants_activation, wants_bias):
    return _backward_results(state, wants_activation, wants_bias)


def _backward_results(
    state: Tensor, wants_activation: bool, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = state.shape
    return (
        state.new_empty((rows, features)),
        state.new_empty((rows if wants_activation else 0, features)),
        state.new_zeros(features if wants_bias else 0, dtype=torch.float32),
    )


def _programs(rows: Tensor, features: int, tiles: Tiles) -> tuple[int]:
    """How many programs share the tiles."""
    count = triton.cdiv(rows.shape[0], tiles.block_m) * triton.cdiv(features, tiles.block_n)
    return (min(count, multiprocessors(rows.device) * tiles.residents),)


def _layout(tiles: Tiles) -> dict[str, int]:
    """The constants and launch options of both kernels."""
    return {
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def compilations() -> Iterator[Compilation]:
    """Both kernels in every shipped configuration."""
    for element, tiles in [*product(("bf16", "fp16"), TILES), ("fp32", FLOAT32_TILES)]:
        constants = _layout(tiles)
        launch = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        name = f"{element} {tiles.block_m}x{tiles.block_n}x{tiles.block_k}"
        launch |= {"residents": tiles.residents, "tensor_cores": element != "fp32"}
        rows = descriptor_type(element, tiles.block_m, tiles.block_k)
        strip = descriptor_type(element, tiles.block_m, min(tiles.block_n, WIDTH))
        part = descriptor_type(element, tiles.block_m, min(tiles.block_n, STATE_WIDTH))
        sizes = dict.fromkeys(("rows", "features", "inner"), "i32")
        for kept in (True, False):
            yield Compilation(
                kernel=linear_gelu,
                configuration=name + " state" * kept,
                arguments={
                    "x_desc": rows,
                    "weight_desc": descriptor_type(element, tiles.block_n, tiles.block_k),
                    "bias_ptr": f"*{element}",
                    "state_desc": strip if kept else None,
                    "out_desc": strip,
                    **sizes,
                    **constants,
                },
                **launch,
            )
            yield Compilation(
                kernel=linear_gelu_gradient,
                configuration=name + " activation" * kept,
                arguments={
                    "gradient_desc": rows,
                    "weight_desc": descriptor_type(element, tiles.block_k, tiles.block_n),
                    "state_desc": part,
                    "state_gradient_desc": strip,
                    "activation_desc": strip if kept else None,
                    "sums_ptr": "*fp32",
                    **sizes,
                    **constants,
                },
                **launch,
            )
