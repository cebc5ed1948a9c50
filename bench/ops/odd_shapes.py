"""Attention's kernels on shapes that end inside a tile, short enough for compute-sanitizer."""

import torch

from metamorph_kernels import (
    decode_attention,
    interval_attention,
    interval_attention_fp8,
    key_intervals,
    prefill_attention,
    prefill_row,
)

# Document lengths, spans, query heads, key heads, head dimension.
SHAPES = (
    ((1, 17, 129), ((0, 1), (20, 90)), 6, 2, 80),
    ((333,), (), 4, 1, 128),
)


def main(device: str = "cuda", dtype: torch.dtype = torch.bfloat16, impl: str = "triton") -> None:
    """Raise unless every element of every result is finite."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody writes is NaN
    for lengths, spans, query_heads, key_heads, head_dim in SHAPES:
        tokens = sum(lengths)
        intervals = key_intervals(lengths, spans, device=device)
        leaves = [
            torch.randn(tokens, heads, head_dim, dtype=dtype, device=device, requires_grad=True)
            for heads in (query_heads, key_heads, key_heads)
        ]
        out = interval_attention(*leaves, intervals, impl=impl)
        gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
        q, k, v = (leaf.detach() for leaf in leaves)
        rounded = interval_attention_fp8(q, k, v, intervals, impl=impl)
        caches = tuple(tensor.repeat(3, 1, 1, 1) for tensor in (k, v))
        filled = torch.tensor([tokens, 1, 0], device=device)
        decoded = decode_attention(q[:3], *caches, filled, impl=impl)
        new = (2 * tokens) // 3
        row = prefill_row([(2, 0, tokens - new), (0, tokens - new, new)], device=device)
        prefilled = prefill_attention(q, *caches, row, impl=impl)
        for result in (out, *gradients, rounded, decoded, prefilled):
            if not result.isfinite().all():
                raise ArithmeticError(f"{tuple(result.shape)}: not all elements are finite")


if __name__ == "__main__":
    main()
