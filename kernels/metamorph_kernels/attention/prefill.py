"""Attention of new tokens over a static key/value cache that holds them and what came before."""

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
from metamorph_kernels.attention.decode import cpp_limit, inference_limit
from metamorph_kernels.attention.interval import WRITTEN_OUT, attention_is_written_out
from metamorph_kernels.backends import resolve
from metamorph_kernels.cpu_library import prefill_attention_cpp
from metamorph_kernels.prefill_rows import Piece, PrefillRow
from metamorph_kernels.transforms import OnceOnly


def prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row: PrefillRow,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(scale q k^T) v over the first visible[i] keys of the sequence of each query i.

    For prompts that are read in chunks and for the next turn of a conversation: the cache already
    holds the keys and values of the new tokens, and those of their sequences before them.

    q [T, Hq, D]; caches [B, S, Hkv, D] with Hq a multiple of Hkv; `row` from `prefill_row` for T
    tokens. Returns [T, Hq, D] in the dtype of q. `scale` is 1 / sqrt(D) unless given. float64,
    float32, bfloat16 or float16, the same for all three; follows autocast. What the cache holds
    past the tokens of a piece, and in sequences without one, has no effect on it, NaN included.

    The PyTorch path is one call a piece, or a run of pieces alike in neighbouring sequences;
    compiled, it specialises on the pieces. Triton takes head dimensions 64, 80, 96 and 128, not
    float64, and has no backward; it reads nothing on the host. C++, for CPUs, takes float32 and
    bfloat16, and has no backward either.

    Raises ValueError for shapes, dtypes or devices that do not fit, for a scale that is not
    positive, for an `impl` that cannot run this call, and for pieces that the cache has no room
    for, which compiled Triton does not look for.
    """
    q, k_cache, v_cache = same_dtype(q=q, k_cache=k_cache, v_cache=v_cache)
    check_shape("q", q, "T, Hq, D", None, None, None)
    tokens, _, head_dim = q.shape
    check_shape("k_cache", k_cache, "B, S, Hkv, D", None, None, None, head_dim)
    check_shape("v_cache", v_cache, "B, S, Hkv, D", *k_cache.shape)
    check_heads(q, k_cache)
    if not isinstance(row, PrefillRow):
        raise ValueError(f"row: expected a PrefillRow, got {type(row).__name__}")
    check_integers("row", row.visible, (torch.int32,), q.device)
    check_shape("row", row.visible, "T", tokens)
    scale = softmax_scale(scale, head_dim)
    backend = resolve(
        "prefill_attention",
        impl,
        q,
        inference_limit(q, k_cache, v_cache),
        cpp_limit=cpp_limit(q, k_cache, v_cache),
    )
    if backend == "torch" or not torch.compiler.is_compiling():  # else a graph would be of one row
        _check_room(row, *k_cache.shape[:2])

    def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor]:
        if backend == "torch":
            return (_prefill_attention_torch(q, k_cache, v_cache, row, scale),)
        if backend == "cpp":
            return (prefill_attention_cpp(q, k_cache, v_cache, row.visible, row.blocks, scale),)
        from metamorph_kernels.attention.prefill_triton import prefill_attention_triton

        return (prefill_attention_triton(q, k_cache, v_cache, row.visible, row.blocks, scale),)

    if backend == "torch" and attention_is_written_out():
        [out] = attention(q, k_cache, v_cache)
    else:
        [out] = OnceOnly("prefill_attention", WRITTEN_OUT)(attention, q, k_cache, v_cache)
    return out


def _check_room(row: PrefillRow, sequences: int, slots: int) -> None:
    if row.sequence_count <= sequences and row.key_count <= slots:
        return
    piece = next(
        (sequence, start, count)
        for sequence, start, count in row.pieces
        if sequence >= sequences or start + count > slots
    )
    raise ValueError(
        f"row: piece (sequence, start, count) = {piece} does not fit a cache of {sequences} "
        f"sequences of {slots} keys"
    )


def _prefill_attention_torch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, row: PrefillRow, scale: float
) -> Tensor:
    outputs = []
    first = 0
    for (sequence, start, count), plain, alike in _runs(row):
        last, end = first + alike * count, start + count
        query = q[first:last].unflatten(0, (alike, count)).transpose(1, 2)
        key, value = (
            cache[sequence : sequence + alike, :end].transpose(1, 2) for cache in (k_cache, v_cache)
        )
        causal, visible = False, None  # one token sees all
        if plain and start == 0:
            causal = True
        elif count > 1:
            place = torch.arange(end, dtype=torch.int32, device=q.device)
            visible = place < row.visible[first : first + count, None]  # [count, end]
        out = F.scaled_dot_product_attention(
            query, key, value, visible, is_causal=causal, scale=scale, enable_gqa=True
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        first = last
    return torch.cat(outputs)


def _runs(row: PrefillRow) -> list[tuple[Piece, bool, int]]:
    """Pieces, whether they are plain, and how many alike follow for the sequences behind them.

    Alike are plain pieces of the same start and count, one after another.
    """
    runs: list[tuple[Piece, bool, int]] = []
    for piece, plain in zip(row.pieces, row.plain_pieces, strict=True):
        if runs:
            (sequence, *place), before, alike = runs[-1]
            if plain and before and piece == (sequence + alike, *place):
                runs[-1] = (runs[-1][0], plain, alike + 1)
                continue
        runs.append((piece, plain, 1))
    return runs
