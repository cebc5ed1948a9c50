"""Why a device cannot run our kernels, in one line for error messages and the doctor."""

import importlib.util
import os
from dataclasses import dataclass
from functools import cache

import torch

from metamorph_kernels.architectures import MOST_SHARED_BYTES
from metamorph_kernels.graphs import constant_in_graphs


@dataclass(frozen=True)
class Needs:
    """What kernels ask of a GPU: a compute capability in [oldest, below), memory for a block."""

    oldest: tuple[int, int]
    below: tuple[int, int] | None = None
    shared_bytes: int = 0


# Matrix products are compiled for warp groups and TMA, in tiles that fill the shared memory of a
# Hopper SM: an RTX 5090 (12.0) has not half of it, and a B200 (10.0) multiplies in other ways.
HOPPER = Needs((9, 0), (10, 0), shared_bytes=MOST_SHARED_BYTES["sm_90"])
ROWS = Needs((8, 0))  # plain loads and sums, in bfloat16 too


@constant_in_graphs
def triton_absence(device_type: str, needs: Needs = HOPPER) -> str | None:
    """Why Triton kernels cannot run on tensors of this device type, or None where they can."""
    return _triton_absence(device_type, needs)


@constant_in_graphs
def gluon_absence(device_type: str) -> str | None:
    """Why Gluon kernels cannot run on tensors of this device type, or None where they can."""
    if device_type == "cpu":
        return "Gluon kernels run on a GPU only"
    reason = triton_absence(device_type, HOPPER)
    if reason is None and importlib.util.find_spec("triton.experimental.gluon") is None:
        return "this Triton has no Gluon"
    return reason


@cache
def _triton_absence(device_type: str, needs: Needs) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "CPU tensors need TRITON_INTERPRET=1, set before Python starts"
    return gpu_absence(device_type, needs.oldest, needs.below, needs.shared_bytes)


def gpu_absence(
    device_type: str,
    oldest: tuple[int, int],
    below: tuple[int, int] | None = None,
    shared_bytes: int = 0,
) -> str | None:
    """Why there is no CUDA device with all that, as in `Needs`, or None where one is."""
    if device_type != "cuda" or torch.version.hip is not None:
        return f"no kernels for {device_type} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < oldest or (below is not None and capability >= below):
        wanted = f"{_dotted(oldest)} or newer"
        if below is not None:
            wanted = f"at least {_dotted(oldest)} and less than {_dotted(below)}"
        return f"compute capability {_dotted(capability)}; the kernels need {wanted}"
    if shared_bytes:
        device = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(device)
        # pyrefly: ignore[missing-attribute]  its stub lacks this one
        found = properties.shared_memory_per_block_optin
        if found < shared_bytes:
            return f"{found} bytes of shared memory for a block; the kernels need {shared_bytes}"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
