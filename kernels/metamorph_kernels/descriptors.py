"""Which tensors Hopper's copy engine can read through a tensor descriptor."""

import torch
from torch import Tensor


def is_describable(tensor: Tensor) -> bool:
    """Whether the last dimension is dense, and address and other strides are 16-byte aligned."""
    *strides, last = tensor.stride()
    size = tensor.element_size()
    aligned = all(stride > 0 and stride * size % 16 == 0 for stride in strides)
    return last == 1 and aligned and tensor.data_ptr() % 16 == 0


def describable(tensor: Tensor) -> Tensor:
    """`tensor`, or a dense copy of one that the copy engine cannot read."""
    if is_describable(tensor):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
