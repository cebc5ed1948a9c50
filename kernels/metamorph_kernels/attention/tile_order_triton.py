"""In which order a persistent kernel should take its tiles of keys: the longest first.

Tiles of keys are few, and of packed documents of very different length. Taken as they stand, 8 % of
an H100 has no tile at some time at 16k tokens, by a model; sorted 1 % (docs/kernels.md). Tiles of
queries are many more and need no order but late ones first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

RANKED = 64  # tiles by one program


def longest_first(
    col_start: Tensor,  # int32 [T]: key j is seen by queries [col_start[j], col_end[j])
    col_end: Tensor,
    causal: bool,
    tile: int,
) -> Tensor:
    """int32 [tiles]: the tiles of `tile` keys by how many queries see them, most first.

    Made on the device, where nothing waits for it.
    """
    tokens = len(col_end)
    tiles = triton.cdiv(tokens, tile)
    order = torch.empty(tiles, dtype=torch.int32, device=col_end.device)
    rank_key_tiles[(triton.cdiv(tiles, RANKED),)](
        col_start, col_end, order, tokens, tiles, TILE=tile, RANKED=RANKED, CAUSAL=causal,
        num_warps=4,
    )  # fmt: skip
    return order


@triton.jit
def queries_of_tiles(
    col_start_ptr, col_end_ptr, tile, tokens, TILE: tl.constexpr, CAUSAL: tl.constexpr
):
    """How many queries see each of these tiles of keys; -1 past the last."""
    first = tile * TILE
    exists = first < tokens
    last = tl.minimum(first + TILE, tokens) - 1
    if CAUSAL:
        start = first
    else:
        start = tl.load(col_start_ptr + first, mask=exists, other=0)
    return tl.where(exists, tl.load(col_end_ptr + last, mask=exists, other=0) - start, -1)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def rank_key_tiles(
    col_start_ptr,  # int32 [T]
    col_end_ptr,
    order_ptr,  # int32 [tiles], written here
    tokens,
    tiles,
    TILE: tl.constexpr,
    RANKED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Puts each tile in its place: behind all longer ones, and those as long before it."""
    mine = tl.program_id(0) * RANKED + tl.arange(0, RANKED)
    length = queries_of_tiles(col_start_ptr, col_end_ptr, mine, tokens, TILE, CAUSAL)
    place = tl.zeros([RANKED], tl.int32)
    for begin in range(0, tiles, RANKED):
        other = begin + tl.arange(0, RANKED)
        its_length = queries_of_tiles(col_start_ptr, col_end_ptr, other, tokens, TILE, CAUSAL)
        is_longer = its_length[None, :] > length[:, None]
        is_equal = its_length[None, :] == length[:, None]
        before = is_longer | (is_equal & (other[None, :] < mine[:, None]))
        place += tl.sum(before.to(tl.int32), 1)
    tl.store(order_ptr + place, mine, mask=mine < tiles)
