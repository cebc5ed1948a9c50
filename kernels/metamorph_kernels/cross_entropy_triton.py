"""Rows of logits to losses and the gradient of the logits in Triton: two reads, one write."""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from metamorph_kernels.compilation import Compilation
from metamorph_kernels.products import wide_product

BLOCK, NUM_WARPS = 4096, 16
ALIGNMENT = 64  # of rows of gradients, in elements, so that matrix products read them at full speed


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
    """One row. A label that is no class makes its loss and gradient NaN."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    offset = tl.arange(0, BLOCK)
    # Each lane sums by itself, relative to the largest logit that it has met.
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    lane_sum = tl.zeros([BLOCK], tl.float32)
    logit_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, classes, BLOCK):
        mask = first + offset < classes
        logits = tl.load(logits_ptr + first + offset, mask=mask, other=float("-inf"))
        larger = tl.maximum(largest, logits)
        met = larger > float("-inf")  # else both are, and their difference is NaN
        lane_sum = tl.where(met, lane_sum * tl.exp(largest - larger) + tl.exp(logits - larger), 0.0)
        largest = larger
        logit_sum += tl.where(mask, logits, 0.0)
    top = tl.max(largest, 0)
    log_sum = top + tl.log(tl.sum(lane_sum * tl.exp(largest - top), 0))

    label = tl.load(labels_ptr + row)
    real = (label >= 0) & (label < classes)
    target = tl.load(logits_ptr + label, mask=real, other=float("nan"))
    loss = log_sum - (1.0 - smoothing) * target + z_loss * log_sum * log_sum
    if smoothing > 0.0:  # not 0 times what may be infinite
        loss -= smoothing * tl.sum(logit_sum, 0) / classes
    tl.store(losses_ptr + row, loss)

    if gradient_ptr is not None:
        cotangent = tl.load(cotangents_ptr + row) + tl.where(real, 0.0, float("nan"))
        probability_weight = cotangent * (1.0 + 2.0 * z_loss * log_sum)
        gradient_ptr += row * gradient_stride
        for first in range(0, classes, BLOCK):
            column = first + offset
            mask = column < classes
            logits = tl.load(logits_ptr + column, mask=mask, other=float("-inf"))
            wanted = tl.where(column == label, 1.0 - smoothing, 0.0) + smoothing / classes
            gradient = probability_weight * tl.exp(logits - log_sum) - cotangent * wanted
            tl.store(gradient_ptr + column, gradient, mask=mask)


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

    The gradient is [N, V] and a few columns that are not written.
    """
    losses, gradient = _results(x, weight, cotangents)
    classes = len(weight)
    if len(x) == 0:
        return losses, gradient
    logits = losses.new_empty((len(x), aligned(classes)))[:, :classes]
    wide_product(x, weight.t(), out=logits)
    with torch.cuda.device_of(x):
        cross_entropy[(len(x),)](
            logits,
            labels.contiguous(),
            cotangents,
            losses,
            None if cotangents is None else gradient,
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
    """With and without gradient."""
    for element, with_gradient in product(("bf16", "fp16", "fp32"), (True, False)):
        if element != "bf16" and not with_gradient:
            continue  # the same kernel: only the gradient has this type
        yield Compilation(
            kernel=cross_entropy,
            configuration=f"{element} gradient" if with_gradient else "no gradient",
            arguments={
                "logits_ptr": "*fp32",
                "labels_ptr": "*i64",
                "cotangents_ptr": "*fp32" if with_gradient else None,
                "losses_ptr": "*fp32",
                "gradient_ptr": f"*{element}" if with_gradient else None,
                "logits_stride": "i32:16",
                "gradient_stride": "i32:16",
                "classes": "i32",
                "smoothing": "fp32",
                "z_loss": "fp32",
                "BLOCK": BLOCK,
            },
            num_warps=NUM_WARPS,
            num_stages=3,
            tensor_cores=False,
        )
