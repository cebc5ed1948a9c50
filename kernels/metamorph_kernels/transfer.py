"""Tensors from the host to a device, without waiting for it."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A host tensor on `device`; on a GPU it arrives in the order of the current stream.

    From pinned memory, because a copy from any other makes the host wait.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
