"""Why a device cannot run our kernels, in one line for error messages and the doctor."""

import importlib.util
import os
from functools import cache

import torch

TRITON_CAPABILITY = (9, 0)  # tensor descriptors and wgmma; the AOT checker compiles for it


@torch.compiler.assume_constant_result
def triton_absence(device_type: str) -> str | None:
    """Why our Triton kernels cannot run on tensors of this device type, or None where they can."""
    return _triton_absence(device_type)


@cache
def _triton_absence(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "CPU tensors need TRITON_INTERPRET=1, set before Python starts"
    return gpu_absence(device_type, TRITON_CAPABILITY)


def gpu_absence(device_type: str, oldest: tuple[int, int]) -> str | None:
    """Why there is no CUDA device of compute capability `oldest` or newer, or None where one is."""
    if device_type != "cuda" or torch.version.hip is not None:
        return f"no kernels for {device_type} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability() < oldest:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"compute capability {found}; the kernels need {oldest[0]}.{oldest[1]} or newer"
    return None
