"""The vision head's last layer and its cosine loss in Triton: sums of the loss in the epilogue."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.compilation import Compilation, descriptor_type
from metamorph_kernels.descriptors import describable


@dataclass(frozen=True)
class Tiles:
    """Rows, channels and inner steps of one tile of the product."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# By bytes of an element. float32 is for tests of exactness, on the FMA units.
TILES = {
    2: Tiles(128, 128, 64, num_warps=8, num_stages=4),
    4: Tiles(16, 16, 32, num_warps=8, num_stages=1),
}
RESIDUAL_BLOCK, RESIDUAL_WARPS = 1024, 4


@triton.jit(do_not_specialize=["rows"])
def linear_cosine_forward(
    x_desc,  # [N, H] in blocks [BLOCK_M, BLOCK_K]
    weight_desc,  # [C, H] in blocks [BLOCK_N, BLOCK_K]
    bias_ptr,  # [C], or None
    target_desc,  # [N, C] in blocks [BLOCK_M, BLOCK_N]
    prediction_desc,  # [N, C] in blocks [BLOCK_M, BLOCK_N]
    sums_ptr,  # float32 [3, ceil(C / BLOCK_N), N]: p.p, p.t, t.t of each row and tile of channels
    rows,
    channels,
    hidden,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """prediction = x weight^T + bias, and what of its cosine with target each tile can tell.

    Programs stay on their processor and take every so many tiles: all cost the same. The sums are
    those of the prediction as it is stored.
    """
    channel_tiles = tl.cdiv(channels, BLOCK_N)
    tiles = tl.cdiv(rows, BLOCK_M) * channel_tiles
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row = (tile // channel_tiles) * BLOCK_M
        channel = (tile % channel_tiles) * BLOCK_N
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for inner in range(tl.cdiv(hidden, BLOCK_K)):
            x = x_desc.load([row, inner * BLOCK_K])
            weight = weight_desc.load([channel, inner * BLOCK_K])
            total = tl.dot(x, weight.T, total, input_precision="ieee")
        if bias_ptr is not None:
            column = channel + tl.arange(0, BLOCK_N)
            bias = tl.load(bias_ptr + column, mask=column < channels, other=0.0)
            total += bias.to(tl.float32)[None, :]
        prediction = total.to(prediction_desc.dtype)
        prediction_desc.store([row, channel], prediction)
        # Channels past the last are zeros on both sides and add nothing.
        prediction = prediction.to(tl.float32)
        target = target_desc.load([row, channel]).to(tl.float32)
        line = row + tl.arange(0, BLOCK_M)
        known = line < rows
        sums = sums_ptr + (channel // BLOCK_N).to(tl.int64) * rows + line
        step = channel_tiles.to(tl.int64) * rows
        tl.store(sums, tl.sum(prediction * prediction, 1), mask=known)
        tl.store(sums + step, tl.sum(prediction * target, 1), mask=known)
        tl.store(sums + 2 * step, tl.sum(target * target, 1), mask=known)


@triton.jit
def linear_cosine_residual(
    prediction_ptr,  # [N, C]
    target_ptr,  # [N, C], rows `target_stride` apart
    along_ptr,  # float32 [N]
    across_ptr,  # float32 [N]
    out_ptr,  # [N, C]
    target_stride,
    channels,
    BLOCK: tl.constexpr,
):
    """out = along prediction - across target, a part of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < channels
    prediction = tl.load(prediction_ptr + row * channels + column, mask=mask).to(tl.float32)
    target = tl.load(target_ptr + row * target_stride + column, mask=mask).to(tl.float32)
    out = tl.load(along_ptr + row) * prediction - tl.load(across_ptr + row) * target
    tl.store(out_ptr + row * channels + column, out, mask=mask)


def linear_cosine_triton(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Losses float32 [N] of checked arguments."""
    return _LinearCosine.apply(x, weight, bias, target)


class _LinearCosine(torch.autograd.Function):
    """Keeps the prediction once, in its own dtype; of the loss only two numbers a row."""

    @staticmethod
    def forward(ctx, x, weight, bias, target):
        prediction, sums = linear_cosine_rows(x, weight, bias, target)
        directed = sums[[0, 2]] >= torch.finfo(torch.float32).tiny
        inverse, inverse_target = torch.where(directed, sums[[0, 2]].rsqrt(), 0)
        cosine = (sums[1] * inverse) * inverse_target
        ctx.save_for_backward(x, weight, prediction, target, cosine, inverse, inverse_target)
        ctx.has_bias = bias is not None
        return 1 - cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight, prediction, target, cosine, inverse, inverse_target = ctx.saved_tensors
        scaled = gradient * inverse
        residual = linear_cosine_backward(
            prediction, target, scaled * cosine * inverse, scaled * inverse_target
        )  # [N, C]
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            residual @ weight if wants_x else None,
            residual.t() @ x if wants_weight else None,
            residual.sum(0, dtype=torch.float32).to(weight.dtype) if wants_bias else None,
            None,
        )


@torch.library.custom_op("metamorph_kernels::linear_cosine_rows", mutates_args=())
def linear_cosine_rows(
    x: Tensor,  # [N, H]
    weight: Tensor,  # [C, H]
    bias: Tensor | None,  # [C]
    target: Tensor,  # [N, C]
) -> tuple[Tensor, Tensor]:
    """prediction [N, C] in the dtype of x, and float32 [3, N]: p.p, p.t and t.t of each row."""
    rows, hidden = x.shape
    channels = weight.shape[0]
    tiles = TILES[x.element_size()]
    channel_tiles = triton.cdiv(channels, tiles.block_n)
    prediction = torch.empty((rows, channels), dtype=x.dtype, device=x.device)
    sums = torch.empty((3, channel_tiles, rows), dtype=torch.float32, device=x.device)
    if rows == 0:
        return prediction, sums.sum(1)
    x, weight, target = map(describable, (x, weight, target))
    processors = 2  # the interpreter
    if x.device.type == "cuda":
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    inner, outer = (tiles.block_m, tiles.block_k), (tiles.block_m, tiles.block_n)
    with torch.cuda.device_of(x):
        linear_cosine_forward[(min(triton.cdiv(rows, tiles.block_m) * channel_tiles, processors),)](
            TensorDescriptor.from_tensor(x, list(inner)),
            TensorDescriptor.from_tensor(weight, [tiles.block_n, tiles.block_k]),
            None if bias is None else bias.contiguous(),
            TensorDescriptor.from_tensor(target, list(outer)),
            TensorDescriptor.from_tensor(prediction, list(outer)),
            sums,
            rows,
            channels,
            hidden,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return prediction, sums.sum(1)


@linear_cosine_rows.register_fake
def _(x, weight, bias, target):
    prediction = x.new_empty((x.shape[0], weight.shape[0]))
    return prediction, x.new_empty((3, x.shape[0]), dtype=torch.float32)


@torch.library.custom_op("metamorph_kernels::linear_cosine_backward", mutates_args=())
def linear_cosine_backward(
    prediction: Tensor, target: Tensor, along: Tensor, across: Tensor
) -> Tensor:
    """along prediction - across target, [N, C] in the dtype of the prediction."""
    rows, channels = prediction.shape
    out = torch.empty_like(prediction)
    if rows == 0:
        return out
    if target.stride(1) != 1:
        target = target.contiguous()
    with torch.cuda.device_of(prediction):
        linear_cosine_residual[(rows, triton.cdiv(channels, RESIDUAL_BLOCK))](
            prediction,
            target,
            along,
            across,
            out,
            target.stride(0),
            channels,
            BLOCK=RESIDUAL_BLOCK,
            num_warps=RESIDUAL_WARPS,
        )
    return out


@linear_cosine_backward.register_fake
def _(prediction, target, along, across):
    return torch.empty_like(prediction)


def compilations() -> Iterator[Compilation]:
    """Both kernels in every shipped configuration."""
    for element, target, bias in product(("bf16", "fp16", "fp32"), ("own", "fp32"), (True, False)):
        if element == "fp32" and target == "fp32":
            continue  # its own
        tiles = TILES[4 if element == "fp32" else 2]
        target = element if target == "own" else target
        outer = (tiles.block_m, tiles.block_n)
        yield Compilation(
            kernel=linear_cosine_forward,
            configuration=f"{element} target {target} {'bias' if bias else 'no bias'} "
            f"{tiles.block_m}x{tiles.block_n}x{tiles.block_k}",
            arguments={
                "x_desc": descriptor_type(element, tiles.block_m, tiles.block_k),
                "weight_desc": descriptor_type(element, tiles.block_n, tiles.block_k),
                "bias_ptr": f"*{element}" if bias else None,
                "target_desc": descriptor_type(target, *outer),
                "prediction_desc": descriptor_type(element, *outer),
                "sums_ptr": "*fp32",
                "rows": "i32",
                "channels": "i32",
                "hidden": "i32",
                "BLOCK_M": tiles.block_m,
                "BLOCK_N": tiles.block_n,
                "BLOCK_K": tiles.block_k,
            },
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            tensor_cores=element != "fp32",
        )
        if bias:
            yield Compilation(
                kernel=linear_cosine_residual,
                configuration=f"{element} target {target}",
                arguments={
                    "prediction_ptr": f"*{element}",
                    "target_ptr": f"*{target}",
                    "along_ptr": "*fp32",
                    "across_ptr": "*fp32",
                    "out_ptr": f"*{element}",
                    "target_stride": "i32",
                    "channels": "i32",
                    "BLOCK": RESIDUAL_BLOCK,
                },
                num_warps=RESIDUAL_WARPS,
                num_stages=1,
                tensor_cores=False,
            )
