"""Which device a run computes on."""

import os

import torch

from metamorph.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU; `torchrun` gives each process of a machine
    its own. Raises `UserError` for any other device than those, and for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is none of auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {name!r} was asked for, but CUDA is not available there")
    return device
