"""Every op in its plainest form, the oracle of the tests: brute force, any dtype, autograd.

Shapes, arguments and meaning are those of the public ops; nothing is checked here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph_kernels.intervals import Intervals
from metamorph_kernels.prefill_rows import PrefillRow


def interval_mask(intervals: Intervals) -> Tensor:
    """bool [T, T]: may query i see key j?"""
    key = torch.arange(len(intervals.row_start), device=intervals.row_start.device)
    return (intervals.row_start[:, None] <= key) & (key < intervals.row_end[:, None])


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    scores = _scores(q, k, intervals, scale)
    out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), _each_query_head(v, q))
    if not return_lse:
        return out
    return out, scores.to(torch.promote_types(q.dtype, torch.float32)).exp().sum(-1).log()


def interval_attention_fp8(
    q: Tensor, k: Tensor, v: Tensor, intervals: Intervals, *, scale: float | None = None
) -> Tensor:
    dtype = q.dtype
    q, k, v = (_through_fp8(tensor) for tensor in (q, k, v))
    scores = _scores(q, k, intervals, scale) / math.log(2)
    weights = 2 ** (8 + scores - scores.amax(-1, keepdim=True).ceil())
    rounded = weights.to(torch.float8_e4m3fn).double()
    out = torch.einsum("hij,jhd->ihd", rounded, _each_query_head(v, q))
    return (out / weights.sum(-1).t()[..., None]).to(dtype)


def _through_fp8(x: Tensor) -> Tensor:
    """float64 [T, H, D] of what float8_e4m3fn keeps of each head."""
    heads = []
    for head in x.float().unbind(1):
        finite = head.isfinite()
        scale = head.where(finite, 0).abs().max() / 448
        if scale == 0:
            scale = torch.ones_like(scale)
        kept = (head / scale).clamp(-448, 448).where(finite, math.nan)
        heads.append(kept.to(torch.float8_e4m3fn).double() * scale)
    return torch.stack(heads, 1)


def _each_query_head(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _scores(q: Tensor, k: Tensor, intervals: Intervals, scale: float | None) -> Tensor:
    """[Hq, T, T], -inf where hidden."""
    scores = torch.einsum("ihd,jhd->hij", q, _each_query_head(k, q)) * _scale(q, scale)
    return scores.masked_fill(~interval_mask(intervals), -math.inf)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float | None = None
) -> Tensor:
    group = q.shape[1] // k_cache.shape[2]
    outputs = []
    for query, keys, values, length in zip(q, k_cache, v_cache, lengths.tolist(), strict=True):
        keys, values = (
            tensor[:length].repeat_interleave(group, dim=1) for tensor in (keys, values)
        )
        scores = torch.einsum("hd,shd->hs", query, keys) * _scale(q, scale)
        outputs.append(torch.einsum("hs,shd->hd", scores.softmax(-1), values))
    return torch.stack(outputs)


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row: PrefillRow,
    *,
    scale: float | None = None,
) -> Tensor:
    keys, values = k_cache[row.sequences], v_cache[row.sequences]  # [T, S, Hkv, D]
    return decode_attention(q, keys, values, row.visible, scale=scale)


def cosine_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    target_index: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    target = target.detach()
    if target_index is not None:
        rows = (target_index >= 0).nonzero()[:, 0]
        counted = cosine_loss(prediction[rows], target[target_index[rows]], reduction="none")
        losses = counted.new_zeros(len(prediction)).index_put((rows,), counted)
        return _reduce(losses, len(rows), reduction)
    norms = prediction.norm(dim=-1) * target.norm(dim=-1)
    dot = (prediction * target).sum(-1)
    losses = 1 - torch.where(norms == 0, 0, dot / norms.where(norms != 0, 1))
    return _reduce(losses, len(losses), reduction)


def linear_cosine_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, reduction: str = "mean"
) -> Tensor:
    prediction = x @ weight.t()
    if bias is not None:
        prediction = prediction + bias
    return cosine_loss(prediction, target, reduction=reduction)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    counted = labels != -100
    logits = x @ weight.t()
    target = torch.full_like(logits, label_smoothing / logits.shape[1])
    target[torch.arange(len(x)), labels.where(counted, 0)] += 1 - label_smoothing
    losses = -(target * logits.log_softmax(-1)).sum(-1) + z_loss * logits.logsumexp(-1) ** 2
    return _reduce(losses.where(counted, 0), int(counted.sum()), reduction)


def mlp_gelu(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = x @ w1.t() + b1
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ w2.t() + b2


def linear_fp8(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """float64, not rounded to the dtype of x."""
    y = _rows_through_fp8(x) @ _rows_through_fp8(weight).t()
    return y if bias is None else y + bias.double()


def linear_fp8_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of x, weight and bias, which autograd cannot find: rounding counts as the identity."""
    by_rows, by_columns = (_rows_through_fp8(rows, *_E5M2) for rows in (gradient, gradient.t()))
    x_gradient = by_rows @ _rows_through_fp8(weight.t()).t()
    weight_gradient = by_columns @ _rows_through_fp8(x.t()).t()
    return x_gradient, weight_gradient, gradient.double().sum(0)


def mlp_gelu_fp8(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = linear_fp8(x, w1, b1).to(x.dtype).double()
    return linear_fp8(F.gelu(hidden), w2, b2)


def mlp_gelu_fp8_gradients(
    gradient: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Those of x, w1, b1, w2 and b2; each layer's gradient is rounded to the dtype of x."""
    hidden = linear_fp8(x, w1, b1).to(x.dtype).double().requires_grad_()
    activation = F.gelu(hidden)
    of_activation, of_w2, of_b2 = linear_fp8_gradients(gradient, activation.detach(), w2)
    of_activation = of_activation.to(x.dtype).double()
    [of_hidden] = torch.autograd.grad(activation, hidden, of_activation)
    return *linear_fp8_gradients(of_hidden.to(x.dtype), x, w1), of_w2, of_b2


_E5M2 = (2, -14, 57344.0)


def _rows_through_fp8(
    x: Tensor, mantissa_bits: int = 3, lowest_exponent: int = -6, largest: float = 448.0
) -> Tensor:
    """float64 of what float8 keeps of x [N, C] with a float32 scale for each row."""
    x = x.float()
    scale = x.abs().amax(1, keepdim=True) / largest
    scale = torch.where(scale == 0, 1, scale)
    scaled = (x / scale).clamp(-largest, largest).double()
    exponent = (scaled.frexp().exponent - 1).clamp(min=lowest_exponent)
    step = torch.ldexp(torch.ones_like(scaled), exponent - mantissa_bits)
    return (scaled / step).round() * step * scale.double()


def pool(features: Tensor, grid: int) -> Tensor:
    """Bilinear resize alone, as a matrix [grid * grid, N]: [B, N, C] -> [B, grid * grid, C]."""
    side = math.isqrt(features.shape[1])
    along = torch.zeros(grid, side, dtype=features.dtype)  # the weights of one axis
    for out in range(grid):
        source = max((out + 0.5) * side / grid - 0.5, 0.0)
        lower = int(source)
        upper = min(lower + 1, side - 1)
        along[out, lower] += 1 - (source - lower)
        along[out, upper] += source - lower
    return torch.kron(along, along).to(features.device) @ features


def pool_normalize(features: Tensor, grid: int) -> Tensor:
    return F.normalize(pool(features, grid), dim=-1)


def _scale(q: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _reduce(losses: Tensor, count: int, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / max(count, 1)
