"""`mlp_gelu` in Triton: the GELU and its gradient over rows; the matrix products are PyTorch's.

Elementwise kernels, the backward with sums over columns, at the speed of memory.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from metamorph_kernels.arguments import without_autocast
from metamorph_kernels.compilation import EVERY_ARCHITECTURE, HOPPER_ONLY, Compilation
from metamorph_kernels.gelu import gelu, gelu_and_slope

NUM_WARPS = 4
BLOCK = 2048  # numbers of a program of the forward: 16 a thread
# Of a program of the backward: 16 numbers a thread in each step. Partial sums of 64 rows are a
# hundredth of what is moved.
TILE = {"ROWS": 8, "COLUMNS": 256, "STEPS": 8}
ACCESS_BYTES = 16  # of a thread at once, where rows are so many whole times


@triton.jit(do_not_specialize=["vectors"])
def gelu_forward(
    state_ptr,  # dense
    out_ptr,  # as the state, which it may be
    vectors,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = gelu(state) of vectors x VECTOR numbers."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < vectors.to(tl.int64) * VECTOR  # a vector passes or fails it as a whole
    state = tl.load(state_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, gelu(state, state_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "vectors"])
def gelu_backward(
    gradient_ptr,  # [N, F]: of gelu(state), in whose place that of the state is written
    state_ptr,  # [N, F]
    activation_ptr,  # [N, F], or None
    sums_ptr,  # float32 [ceil(N / (ROWS * STEPS)), F], or None
    rows,
    vectors,  # of a row: F = vectors x VECTOR
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """gradient * gelu'(state), and its sums over ROWS * STEPS rows, before it is rounded.

    With them gelu(state) once more, so that nobody need keep it from the forward.
    """
    features = vectors * VECTOR
    tiles = tl.cdiv(features, COLUMNS)
    part = (tl.program_id(0) // tiles).to(tl.int64)
    column = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        row = (part * STEPS + step) * ROWS + tl.arange(0, ROWS)
        place = row[:, None] * features + column[None, :]
        mask = (row < rows)[:, None] & (column < features)[None, :]
        gradient = tl.load(gradient_ptr + place, mask=mask, other=0.0).to(tl.float32)
        state = tl.load(state_ptr + place, mask=mask, other=0.0).to(tl.float32)
        activation, slope = gelu_and_slope(state, state_ptr.dtype.element_ty)
        gradient *= slope
        total += gradient  # of rows past the last: zeros
        tl.store(gradient_ptr + place, gradient, mask=mask)
        if activation_ptr is not None:
            tl.store(activation_ptr + place, activation, mask=mask)
    if sums_ptr is not None:
        tl.store(sums_ptr + part * features + column, tl.sum(total, 0), mask=column < features)


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
    _, activation = linear_gelu(x, w1, b1, False)
    return torch.addmm(b2, activation, w2.t())


class _MLPGelu(torch.autograd.Function):
    """Keeps the state before the GELU, from which the kernel of the backward has it all again."""

    @staticmethod
    def forward(x, w1, b1, w2, b2, keep_state, keep_activation):
        state, activation = linear_gelu(x, w1, b1, keep_state)
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
        with without_autocast(gradient):  # dtypes are those of the forward
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


@torch.library.custom_op("metamorph_kernels::linear_gelu", mutates_args=())
def linear_gelu(
    x: Tensor,  # [N, I]
    weight: Tensor,  # [F, I]
    bias: Tensor,  # [F]
    keep_state: bool,
) -> tuple[Tensor, Tensor]:
    """x weight^T + bias, [N, F] or, unless kept, [0, F]; and its GELU, [N, F]."""
    state = torch.addmm(bias, x, weight.t())
    activation = torch.empty_like(state) if keep_state else state
    size = state.numel()
    if size:
        vector = vector_of(size, state.element_size())
        with torch.cuda.device_of(state):
            gelu_forward[(triton.cdiv(size, BLOCK),)](
                state, activation, size // vector, VECTOR=vector, BLOCK=BLOCK, num_warps=NUM_WARPS
            )
    return state if keep_state else state.new_empty((0, len(weight))), activation


@linear_gelu.register_fake
def _(x, weight, bias, keep_state):
    rows, features = x.shape[0], weight.shape[0]
    return x.new_empty((rows if keep_state else 0, features)), x.new_empty((rows, features))


@torch.library.custom_op("metamorph_kernels::linear_gelu_backward", mutates_args=())
def linear_gelu_backward(
    gradient: Tensor,  # of the output of the second layer, [N, O]
    weight: Tensor,  # of the second layer, [O, F]
    state: Tensor,  # [N, F], dense
    wants_activation: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the state [N, F]; its GELU [N, F] or [0, F]; gradient of the bias float32 [F]
    or [0]."""
    rows, features = state.shape
    state_gradient = torch.mm(gradient, weight)  # so far that of the activation
    activation = state.new_empty((rows if wants_activation else 0, features))
    parts = triton.cdiv(rows, TILE["ROWS"] * TILE["STEPS"])
    sums = state.new_empty((parts, features if wants_bias else 0), dtype=torch.float32)
    if state.numel():
        vector = vector_of(features, state.element_size())
        with torch.cuda.device_of(state):
            gelu_backward[(parts * triton.cdiv(features, TILE["COLUMNS"]),)](
                state_gradient,
                state,
                activation if wants_activation else None,
                sums if wants_bias else None,
                rows,
                features // vector,
                VECTOR=vector,
                **TILE,
                num_warps=NUM_WARPS,
            )
    return state_gradient, activation, sums.sum(0)


@linear_gelu_backward.register_fake
def _(gradient, weight, state, wants_activation, wants_bias):
    rows, features = state.shape
    return (
        state.new_empty((rows, features)),
        state.new_empty((rows if wants_activation else 0, features)),
        state.new_empty(features if wants_bias else 0, dtype=torch.float32),
    )


def vector_of(numbers: int, element_size: int) -> int:
    """How many of them a thread reads and writes at once."""
    most = ACCESS_BYTES // element_size
    return most if numbers % most == 0 else 1


def compilations() -> Iterator[Compilation]:
    """Both kernels in every shipped configuration; for each architecture in bfloat16."""
    for element, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        for vector in (ACCESS_BYTES // size, 1):
            everywhere = element == "bf16" and vector > 1
            launch = {
                "num_warps": NUM_WARPS,
                "num_stages": 3,
                "tensor_cores": False,
                "architectures": EVERY_ARCHITECTURE if everywhere else HOPPER_ONLY,
            }
            name = f"{element} by {vector}"
            matrix = f"*{element}"
            yield Compilation(
                kernel=gelu_forward,
                configuration=name,
                arguments={
                    "state_ptr": matrix,
                    "out_ptr": matrix,
                    "vectors": "i32",
                    "VECTOR": vector,
                    "BLOCK": BLOCK,
                },
                **launch,
            )
            for activation, bias in product((True, False), repeat=2):
                yield Compilation(
                    kernel=gelu_backward,
                    configuration=name + " activation" * activation + " bias" * bias,
                    arguments={
                        "gradient_ptr": matrix,
                        "state_ptr": matrix,
                        "activation_ptr": matrix if activation else None,
                        "sums_ptr": "*fp32" if bias else None,
                        "rows": "i32",
                        "vectors": "i32",
                        "VECTOR": vector,
                        **TILE,
                    },
                    **launch,
                )
