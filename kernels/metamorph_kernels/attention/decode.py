"""Attention of one new token per sequence over a static key/value cache."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph_kernels.arguments import (
    check_heads,
    check_integers,
    check_shape,
    same_dtype,
    softmax_scale,
)
from metamorph_kernels.attention.interval import (
    WRITTEN_OUT,
    attention_is_written_out,
    head_dim_limit,
)
from metamorph_kernels.backends import resolve
from metamorph_kernels.cpu_library import DTYPES, cpp_absence, decode_attention_cpp
from metamorph_kernels.transforms import OnceOnly, may_be_transformed, readable


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(scale q k^T) v over the first lengths[b] keys of each sequence b.

    q [B, Hq, D]; caches [B, S, Hkv, D] with Hq a multiple of Hkv; lengths int32 or int64 [B], each
    in 0..S (0 gives zeros). Returns [B, Hq, D] in the dtype of q. `scale` is 1 / sqrt(D) unless
    given. float64, float32, bfloat16 or float16, the same for all three; follows autocast. What the
    cache holds past a length has no effect, NaN included.

    Triton takes head dimensions 64, 80, 96 and 128, not float64, and has no backward; it reads
    nothing on the host, so a CUDA graph can hold it. C++, for CPUs, takes float32 and bfloat16, and
    has no backward either.

    Raises ValueError for shapes, dtypes or devices that do not fit, for a scale that is not
    positive, for an `impl` that cannot run this call, and in eager mode on the CPU for lengths
    outside 0..S; elsewhere they are not read on the host.
    """
    q, k_cache, v_cache = same_dtype(q=q, k_cache=k_cache, v_cache=v_cache)
    check_shape("q", q, "B, Hq, D", None, None, None)
    batch, query_heads, head_dim = q.shape
    check_shape("k_cache", k_cache, "B, S, Hkv, D", batch, None, None, head_dim)
    check_shape("v_cache", v_cache, "B, S, Hkv, D", *k_cache.shape)
    check_heads(q, k_cache)
    check_integers("lengths", lengths, (torch.int32, torch.int64), q.device)
    check_shape("lengths", lengths, "B", batch)
    slots = k_cache.shape[1]
    counts = None
    if readable(lengths):
        counts = lengths.tolist()
        if counts and not 0 <= min(counts) <= max(counts) <= slots:
            outside = next(count for count in counts if not 0 <= count <= slots)
            raise ValueError(f"lengths: expected 0 to {slots}, got {outside}")

    scale = softmax_scale(scale, head_dim)
    backend = resolve(
        "decode_attention",
        impl,
        q,
        inference_limit(q, k_cache, v_cache),
        cpp_limit=cpp_limit(q, k_cache, v_cache),
    )
    if counts and not may_be_transformed((q, k_cache, v_cache)):
        if backend == "cpp":
            return decode_attention_cpp(q, k_cache, v_cache, lengths, scale)
        if backend == "torch":
            return _on_host_by_torch(lengths, counts, scale)(q, k_cache, v_cache)

    def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor]:
        if backend == "torch":
            return (_decode_attention_torch(q, k_cache, v_cache, lengths, scale),)
        if backend == "cpp":
            return (decode_attention_cpp(q, k_cache, v_cache, lengths, scale),)
        from metamorph_kernels.attention.decode_triton import decode_attention_triton

        return (decode_attention_triton(q, k_cache, v_cache, lengths, scale),)

    if backend == "torch" and attention_is_written_out():
        [out] = attention(q, k_cache, v_cache)
    else:
        [out] = OnceOnly("decode_attention", WRITTEN_OUT)(attention, q, k_cache, v_cache)
    return out


def decode_attention_on_host(
    lengths: Tensor, counts: list[int], scale: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`decode_attention` on a CPU without its checks, as a function of q [B, Hq, D] and the caches
    of keys and values [B, S, Hkv, D], which returns [B, Hq, D], for whoever has made them: the
    layers of a model share lengths [B], and read them once (`counts`, not empty). Nothing is
    differentiated.

    `lengths` must stay as they are until the last call of the function, which reads them again.
    float32 and bfloat16 are computed in C++ where that is built, everything else in PyTorch.
    """
    if cpp_absence("cpu") is not None:
        return _on_host_by_torch(lengths, counts, scale)

    def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        if q.dtype in DTYPES:
            return decode_attention_cpp(q, k_cache, v_cache, lengths, scale)
        return _on_host_by_torch(lengths, counts, scale)(q, k_cache, v_cache)

    return attention


def _on_host_by_torch(
    lengths: Tensor, counts: list[int], scale: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same in PyTorch. It reads no key past the longest sequence, takes no mask where all are
    of one length, and copies no cache, unless what a mask hides turns out not to be finite."""
    shortest, longest = min(counts), max(counts)
    visible = None
    if shortest < longest:
        visible = torch.arange(longest) < lengths[:, None]  # [B, S]

    def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        if longest == 0:
            return torch.zeros_like(q)
        keys, values = k_cache.narrow(1, 0, longest), v_cache.narrow(1, 0, longest)
        out = _attend(q, keys, values, visible, scale)
        if visible is None:
            return out
        if shortest == 0:
            out = _zeros_for_empty(out, lengths)
        # A sum is finite only if all its terms are. What overflows is computed again for nothing.
        if math.isfinite(out.sum()):
            return out
        return _decode_attention_torch(q, keys, values, lengths, scale)

    return attention


def _decode_attention_torch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    visible = torch.arange(k_cache.shape[1], device=q.device) < lengths[:, None]  # [B, S]
    # A mask hides numbers, but not a NaN, which even a weight of 0 lets through.
    keys, values = (cache.where(visible[..., None, None], 0) for cache in (k_cache, v_cache))
    return _zeros_for_empty(_attend(q, keys, values, visible, scale), lengths)


def _attend(
    q: Tensor,  # [B, Hq, D]
    keys: Tensor,  # [B, S, Hkv, D]
    values: Tensor,
    visible: Tensor | None,  # bool [B, S], or None for all
    scale: float,
) -> Tensor:
    # The queries of a group stand where a sequence would, so no key or value is repeated.
    batch, query_heads, head_dim = q.shape
    key_heads = keys.shape[2]
    grouped = q.view(batch, key_heads, query_heads // key_heads, head_dim)
    mask = None if visible is None else visible[:, None, None]
    out = F.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), mask, scale=scale
    )
    return out.reshape(q.shape)


def _zeros_for_empty(out: Tensor, lengths: Tensor) -> Tensor:
    """Not every backend gives zeros where no key is visible."""
    return torch.where(lengths[:, None, None] > 0, out, 0)


_NO_BACKWARD = "its kernel has no backward; call it under torch.no_grad()"
_NO_TRANSFORMS = f"{_NO_BACKWARD} and outside of transforms of torch.func"


def _gradient_limit(*tensors: Tensor) -> str | None:
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _NO_BACKWARD if wanted else None


def inference_limit(*tensors: Tensor) -> str | None:
    """What of a call the Triton kernels over a cache cannot do, or None."""
    if tensors[0].dtype == torch.float64:
        return "float64 runs in PyTorch only"
    return _gradient_limit(*tensors) or head_dim_limit(tensors[0].shape[-1])


def cpp_limit(q: Tensor, *caches: Tensor) -> str | None:
    """What of a call the C++ kernels over a cache cannot do, or None."""
    if q.dtype not in DTYPES:
        return f"float32 and bfloat16 only, got {q.dtype}"
    if torch.compiler.is_compiling():
        return _gradient_limit(q, *caches)
    return _NO_TRANSFORMS if may_be_transformed((q, *caches)) else None
