"""Interval attention in float8, forward only: for the prefill of inference."""

import math

import torch
from torch import Tensor

from metamorph_kernels.arguments import check_floating, check_shape, softmax_scale, without_autocast
from metamorph_kernels.attention.interval import checked_inputs, head_dim_limit, map_documents
from metamorph_kernels.backends import resolve
from metamorph_kernels.float8 import E4M3, WEIGHT_SCALE, quantise
from metamorph_kernels.intervals import Intervals
from metamorph_kernels.transforms import OnceOnly

QUERIES_AT_ONCE = 512  # bounds the scores that the PyTorch path holds


def interval_attention_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """`interval_attention` with float8_e4m3fn matrix products, for inference: no gradients.

    q [T, Hq, D]; k, v [T, Hkv, D] with Hq a multiple of Hkv, float32, bfloat16 or float16, the
    same for all three; follows autocast. Returns [T, Hq, D] in the dtype of q. `scale` is
    1 / sqrt(D) unless given.

    q, k and v are rounded to float8 with one scale per head (`quantise_heads`). Scores and softmax
    are float32. The weights WEIGHT_SCALE * 2 ** (x - ceil(maximum of x over the row)), where x is
    scale q k^T log2(e), are rounded to float8 for the product with v; the sum that divides it is
    that of the weights before rounding. Triton takes the maximum over the keys so far, which
    differs for the weights that float8 keeps as subnormal. The PyTorch path emulates the roundings
    in float32: it shows what to expect and saves nothing. A number that is not finite becomes NaN
    in float8 and reaches only the documents that hold it.

    Raises ValueError as `interval_attention` does, for float64, and for inputs that require grad
    while grad is enabled.
    """
    tensors = {"q": q, "k": k, "v": v}
    q, k, v = checked_inputs(q, k, v, intervals)
    if q.dtype == torch.float64:
        raise ValueError("q: expected float32, bfloat16 or float16, got torch.float64")
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: interval_attention_fp8 is forward only, got a tensor that requires grad"
            )
    scale = softmax_scale(scale, q.shape[-1])
    backend = resolve("interval_attention_fp8", impl, q, head_dim_limit(q.shape[-1]))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        if backend == "torch":
            return (_interval_attention_fp8_torch(q, k, v, intervals, scale),)
        from metamorph_kernels.attention.fp8_triton import interval_attention_fp8_triton

        return (interval_attention_fp8_triton(q, k, v, intervals, scale),)

    [out] = OnceOnly("interval_attention_fp8", "use interval_attention")(attention, q, k, v)
    return out


def quantise_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, H, D] in float8_e4m3fn, and the float32 scale [H] that multiplies it back.

    The scale of a head is its largest finite magnitude / 448, or 1 for a head without any. What is
    not finite becomes NaN.
    """
    check_floating(x=x)
    check_shape("x", x, "T, H, D", None, None, None)
    x = x.float()
    finite = x.isfinite()
    values, scale = quantise(x.where(finite, 0), E4M3, (0, 2))
    # Float8 has no where.
    return values.float().masked_fill(~finite, math.nan).to(E4M3), scale[0, :, 0]


def _interval_attention_fp8_torch(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, scale: float
) -> Tensor:
    def attend(query, key, value, visible):
        length = query.shape[2]
        position = torch.arange(length, device=query.device)
        key, value = (tensor[:, :, None] for tensor in (key, value))  # [.., Hkv, 1, length, D]
        outputs = []
        for first in range(0, length, QUERIES_AT_ONCE):
            rows = slice(first, first + QUERIES_AT_ONCE)
            if visible is None:
                seen = position <= position[rows, None]
            else:
                seen = visible[:, :, None, rows]
            grouped = query[:, :, rows].unflatten(1, (key.shape[1], -1))
            scores = (scale * math.log2(math.e) * (grouped @ key.mT)).masked_fill(~seen, -math.inf)
            weights = WEIGHT_SCALE * (scores - scores.amax(-1, keepdim=True).ceil()).exp2()
            product = weights.to(torch.float8_e4m3fn).float() @ value
            outputs.append((product / weights.sum(-1, keepdim=True)).flatten(1, 2))
        return (torch.cat(outputs, 2),)

    dtype = q.dtype
    with without_autocast(q):
        q, k, v = (_through_fp8(tensor) for tensor in (q, k, v))
        [out] = map_documents(attend, q, k, v, intervals)
    return out.to(dtype)


def _through_fp8(x: Tensor) -> Tensor:
    """float32 of what float8 keeps."""
    rounded, scale = quantise_heads(x)
    return rounded.float() * scale[:, None]
