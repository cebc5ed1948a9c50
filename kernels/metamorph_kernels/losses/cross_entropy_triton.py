"""Rows of logits to losses and the gradient of the logits in Triton: two reads, one write.

A fused cross-entropy: online softmax over the vocabulary, then the gradient.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.compilation import EVERY_ARCHITECTURE, HOPPER_ONLY, Compilation
from metamorph_kernels.losses.chunks import logit_chunks
from metamorph_kernels.products import wide_product

BLOCK, NUM_WARPS = 4096, 16
LANE = tl.constexpr(8)  # neighbouring numbers of a thread: as gradients in half precision, 16 bytes
ALIGNMENT = 64  # of rows, in elements, so that all who read or write them do so at full speed
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def finite_shift(largest):
    """What to subtract before an exponential: 0 where nothing but -inf has been met.

    NaN and inf stay; their differences are NaN, as PyTorch has it.
    """
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def exponential(x):
    """exp(x) of x <= 0, without the care of `tl.exp` for results below the normal numbers."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def cross_entropy(
    logits_ptr,  # float32 [N, V]
    labels_ptr,  # int64 [N]
    cotangents_ptr,  # float32 [N], or None
    losses_ptr,  # float32 [N]
    gradient_ptr,  # [N, V], or None
    logits_stride,
    gradient_stride,
    classes,
    smoothing,
    z_loss,
    BLOCK: tl.constexpr,
):
    """One row. A label that is no class makes its loss and gradient NaN.

    Strides are multiples of ALIGNMENT, and whole rows of memory are read and written, so that
    nothing is scalar for any V; what comes after column V is not looked at, and stays anything.

    A maximum may drop NaN, as a GPU's does, or keep it: the sums of exponentials keep it.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    offset = tl.arange(0, BLOCK // LANE)[:, None] * LANE + tl.arange(0, LANE)[None, :]
    # Each lane sums by itself, relative to the largest logit that it has met.
    largest = tl.full([BLOCK // LANE], float("-inf"), tl.float32)
    lane_sum = tl.zeros([BLOCK // LANE], tl.float32)
    logit_sum = tl.zeros([BLOCK // LANE], tl.float32)
    for first in range(0, classes, BLOCK):
        column = first + offset
        logits = tl.load(logits_ptr + column, mask=column < logits_stride, other=0.0)
        real = column < classes
        logit_sum += tl.sum(tl.where(real, logits, 0.0), 1)
        logits = tl.where(real, logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, 1))
        shift = finite_shift(larger)
        lane_sum *= exponential(largest - shift)
        lane_sum += tl.sum(exponential(logits - shift[:, None]), 1)
        largest = larger
    shift = finite_shift(tl.max(largest, 0))
    log_sum = shift + tl.log(tl.sum(lane_sum * exponential(largest - shift), 0))

    label = tl.load(labels_ptr + row)
    known = (label >= 0) & (label < classes)
    target = tl.load(logits_ptr + label, mask=known, other=float("nan"))
    loss = log_sum - (1.0 - smoothing) * target + z_loss * log_sum * log_sum
    if smoothing > 0.0:  # not 0 times what may be infinite
        loss -= smoothing * tl.sum(logit_sum, 0) / classes
    tl.store(losses_ptr + row, loss)

    if gradient_ptr is not None:
        cotangent = tl.load(cotangents_ptr + row) + tl.where(known, 0.0, float("nan"))
        probability_weight = cotangent * (1.0 + 2.0 * z_loss * log_sum)
        of_others = cotangent * (smoothing / classes)
        of_label = of_others + cotangent * (1.0 - smoothing)
        label = label.to(tl.int32)
        gradient_ptr += row * gradient_stride
        for first in range(0, classes, BLOCK):
            column = first + offset
            logits = tl.load(logits_ptr + column, mask=column < logits_stride, other=0.0)
            gradient = probability_weight * exponential(logits - log_sum)
            gradient -= tl.where(column == label, of_label, of_others)
            tl.store(gradient_ptr + column, gradient, mask=column < gradient_stride)


@torch.library.custom_op("metamorph_kernels::linear_cross_entropy_rows", mutates_args=())
def linear_cross_entropy_rows(
    x: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    labels: Tensor,  # int64 [N]
    cotangents: Tensor | None,  # float32 [N]
    smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """Losses float32 [N], and the gradient of the logits in the dtype of x or, without cotangents,
    [0, 0].

    The gradient is [N, V] and a few columns of anything.
    """
    losses, gradient = _results(x, weight, cotangents)
    classes = len(weight)
    labels = labels.contiguous()
    parts = logit_chunks(len(x), classes)
    if parts:
        memory = losses.new_empty((parts[0].stop, aligned(classes)))
    for part in parts:
        logits = memory[: part.stop - part.start, :classes]
        wide_product(x[part], weight.t(), out=logits)
        with torch.cuda.device_of(x):
            cross_entropy[(len(logits),)](
                logits,
                labels[part],
                None if cotangents is None else cotangents[part],
                losses[part],
                None if cotangents is None else gradient[part],
                logits.stride(0),
                gradient.stride(0),
                classes,
                smoothing,
                z_loss,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
    return losses, gradient


@linear_cross_entropy_rows.register_fake
def _(x, weight, labels, cotangents, smoothing, z_loss):
    return _results(x, weight, cotangents)


def _results(x: Tensor, weight: Tensor, cotangents: Tensor | None) -> tuple[Tensor, Tensor]:
    losses = x.new_empty(len(x), dtype=torch.float32)
    shape = (0, 0) if cotangents is None else (len(x), aligned(len(weight)))
    return losses, x.new_empty(shape)


def aligned(columns: int) -> int:
    """The columns of memory that rows of so many take."""
    return -(-columns // ALIGNMENT) * ALIGNMENT


def compilations() -> Iterator[Compilation]:
    """With and without gradient, for any V and for one that Triton finds a multiple of 16.

    Those of any V in bfloat16 and without gradient are compiled for each architecture.
    """
    for element, classes in product(("bf16", "fp16", "fp32", None), ("i32", "i32:16")):
        name = "no gradient" if element is None else f"{element} gradient"
        everywhere = element in ("bf16", None) and classes == "i32"
        yield Compilation(
            kernel=cross_entropy,
            configuration=f"{name} {'any V' if classes == 'i32' else 'V in 16s'}",
            arguments={
                "logits_ptr": "*fp32",
                "labels_ptr": "*i64",
                "cotangents_ptr": "*fp32" if element else None,
                "losses_ptr": "*fp32",
                "gradient_ptr": f"*{element}" if element else None,
                "logits_stride": "i32:16",
                "gradient_stride": "i32:16",
                "classes": classes,
                "smoothing": "fp32",
                "z_loss": "fp32",
                "BLOCK": BLOCK,
            },
            num_warps=NUM_WARPS,
            num_stages=3,
            tensor_cores=False,
            architectures=EVERY_ARCHITECTURE if everywhere else HOPPER_ONLY,
        )
