"""What the launches of attention kernels share: descriptors, strides, and how many programs."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from metamorph_kernels.descriptors import is_describable
from metamorph_kernels.multiprocessors import multiprocessors

MOST_PACKED_HEADS = 8


def packed_heads(group: int) -> int:
    """How many query heads of a group share a tile: a power of two that divides the group."""
    return min(group & -group, MOST_PACKED_HEADS)


def describe(tensor: Tensor, heads: int, tokens: int) -> TensorDescriptor:
    """A describable [T, H, D] as [H, T, D] in blocks of `heads` x `tokens` x all of D.

    D is padded with zeros to a power of two. Heads stand first because a leading block size of one
    costs no copy.
    """
    view = tensor.transpose(0, 1)
    block = [heads, tokens, triton.next_power_of_2(view.shape[2])]
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block)


def describe_cache(name: str, cache: Tensor, keys: int) -> TensorDescriptor:
    """A cache [B, S, Hkv, D] as [B, Hkv, S, D] in blocks of `keys` x all of D, padded as above.

    Raises ValueError, naming the argument, for one that would have to be copied.
    """
    if not is_describable(cache):
        raise ValueError(
            f"{name}: expected 16-byte aligned strides and address, as a cache of its own has, "
            f"got strides {list(cache.stride())} of {cache.dtype}"
        )
    view = cache.transpose(1, 2)
    block = [1, 1, keys, triton.next_power_of_2(cache.shape[3])]
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block)


def strides(*tensors: Tensor) -> list[int]:
    """Of each [T, H, D] those of tokens and heads."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def work_lists(q: Tensor, heads: int, tokens: int) -> tuple[Tensor, Tensor]:
    """For a persistent kernel: the count of tiles handed out, and room to list tiles to repeat."""
    tiles = triton.cdiv(q.shape[0], tokens) * (q.shape[1] // heads)
    return (
        torch.zeros(1, dtype=torch.int32, device=q.device),
        torch.empty(tiles, dtype=torch.int32, device=q.device),
    )


def programs(q: Tensor, heads: int, tokens: int) -> tuple[int]:
    """One program an SM, or one a tile of `heads` x `tokens` if there are fewer."""
    tiles = triton.cdiv(q.shape[0], tokens) * (q.shape[1] // heads)
    return (min(tiles, multiprocessors(q.device)),)
