"""Which implementations each op has, what this machine can run, and how `impl=` chooses one.

The PyTorch paths are compositions that torch.compile traces as they are, so they are not
registered as custom operators; the kernels are.
"""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

BACKENDS = ("triton", "cuda", "torch")
IMPLEMENTED = {
    "interval_attention": ("triton", "torch"),
    "interval_attention_fp8": ("triton", "torch"),
    "decode_attention": ("triton", "torch"),
    "cosine_loss": ("triton", "torch"),
    "linear_cosine_loss": ("triton", "torch"),
    "linear_cross_entropy": ("torch",),
    "mlp_gelu": ("torch",),
    "pool_normalize": ("triton", "torch"),
}
WIDEST_ROW = 8192  # what one program of a row kernel holds in registers
TRITON_CAPABILITY = (9, 0)  # tensor descriptors and wgmma; the AOT checker compiles for it


def resolve(operation: str, impl: str, tensor: Tensor, triton_limit: str | None = None) -> str:
    """The backend that `impl` means for `operation` on the device of `tensor`.

    `"auto"` is `"triton"` on a GPU that runs our kernels and `"torch"` elsewhere; all backends of
    an op mean the same. `triton_limit` says what of this call the Triton kernel cannot do.

    Raises ValueError, naming what exists or is missing, for an `impl` that cannot run this call.
    """
    if impl == "auto":
        if "triton" not in IMPLEMENTED[operation] or triton_limit is not None:
            return "torch"
        runs = tensor.is_cuda and triton_absence(tensor.device.type) is None
        return "triton" if runs else "torch"
    if impl not in IMPLEMENTED[operation]:
        choices = ", ".join(repr(name) for name in ("auto", *IMPLEMENTED[operation]))
        raise ValueError(f"impl: {operation} takes {choices}, got {impl!r}")
    if impl == "triton":
        reason = triton_absence(tensor.device.type) or triton_limit
        if reason is not None:
            raise ValueError(f"impl: {operation} cannot run in Triton here: {reason}")
    return impl


def row_limit(rows: Tensor) -> str | None:
    """What of these rows, [..., C], the kernels of whole rows cannot do, or None."""
    if rows.dtype == torch.float64:
        return "float64 runs in PyTorch only"
    if rows.shape[-1] > WIDEST_ROW:
        return f"rows of at most {WIDEST_ROW} only, got {rows.shape[-1]}"
    return None


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


def probe() -> dict[str, dict[str, str]]:
    """For each op and each backend, `"available"` or the reason why it is absent.

    Of a GPU if torch sees one, else of the CPU.
    """
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        operation: {
            backend: _state(operation, backend, backend in present, device_type)
            for backend in BACKENDS
        }
        for operation, present in IMPLEMENTED.items()
    }


def _state(operation: str, backend: str, implemented: bool, device_type: str) -> str:
    if not implemented:
        return f"absent: this version has no {backend} implementation of {operation}"
    reason = triton_absence(device_type) if backend == "triton" else None
    return "available" if reason is None else f"absent: {reason}"
