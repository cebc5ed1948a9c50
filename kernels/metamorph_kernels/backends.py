"""Which implementations each op has, what this machine can run, and how `impl=` chooses one.

The PyTorch paths are compositions that torch.compile traces as they are, so they are not
registered as custom operators; the kernels are.
"""

import torch
from torch import Tensor

from metamorph_kernels.absence import HOPPER, ROWS, gluon_absence, triton_absence
from metamorph_kernels.cpu_library import cpp_absence
from metamorph_kernels.cuda_library import cuda_absence

BACKENDS = ("triton", "gluon", "cuda", "cpp", "torch")
LANGUAGES = {"triton": "Triton", "gluon": "Gluon", "cuda": "CUDA C++", "cpp": "C++"}  # of kernels
IMPLEMENTED = {  # "auto" takes the first that can run a call; on a CPU those of `ON_CPU` alone
    "interval_attention": ("triton", "torch"),
    "interval_attention_fp8": ("triton", "torch"),
    "decode_attention": ("triton", "cpp", "torch"),
    "prefill_attention": ("triton", "cpp", "torch"),
    "cosine_loss": ("triton", "cuda", "torch"),
    "linear_cosine_loss": ("triton", "cuda", "torch"),
    "linear_cross_entropy": ("triton", "torch"),
    "linear_fp8": ("triton", "torch"),
    "mlp_gelu": ("triton", "torch"),
    "mlp_gelu_fp8": ("triton", "torch"),
    "pool_normalize": ("triton", "cuda", "torch"),
}
ON_CPU = ("cpp", "torch")  # Triton's interpreter is for tests, and must be asked for
ONLY_IF_ASKED_FOR = {"interval_attention": ("gluon",)}  # no GPU has shown them right and faster
# Triton kernels without matrix products of their own; the others want a Hopper GPU.
ROW_OPERATIONS = (
    "cosine_loss",
    "linear_cosine_loss",
    "linear_cross_entropy",
    "mlp_gelu",
    "pool_normalize",
)
WIDEST_ROW = 8192  # what one program of a row kernel in Triton holds in registers


def resolve(
    operation: str,
    impl: str,
    tensor: Tensor,
    triton_limit: str | None = None,
    cuda_limit: str | None = None,
    gluon_limit: str | None = None,
    cpp_limit: str | None = None,
) -> str:
    """The backend that `impl` means for `operation` on the device of `tensor`.

    `"auto"` is the first of `IMPLEMENTED` that can run this call on a GPU, or on a CPU without an
    interpreter, and `"torch"` elsewhere; all backends of an op mean the same. A limit says what of
    this call its kernel cannot do.

    Raises ValueError, naming what exists or is missing, for an `impl` that cannot run this call.
    """
    present = IMPLEMENTED[operation]
    limits = {
        "triton": triton_limit, "gluon": gluon_limit, "cuda": cuda_limit, "cpp": cpp_limit,
        "torch": None,
    }  # fmt: skip
    if impl == "auto":
        return next(
            backend
            for backend in present
            if (tensor.is_cuda or backend in ON_CPU)
            and (absence(operation, backend, tensor.device.type) or limits[backend]) is None
        )
    if impl not in implementations(operation):
        choices = ", ".join(repr(name) for name in ("auto", *implementations(operation)))
        raise ValueError(f"impl: {operation} takes {choices}, got {impl!r}")
    reason = absence(operation, impl, tensor.device.type) or limits[impl]
    if reason is not None:
        raise ValueError(f"impl: {operation} cannot run in {LANGUAGES[impl]} here: {reason}")
    return impl


def implementations(operation: str) -> tuple[str, ...]:
    """What `impl=` can name, "auto" aside."""
    return (*IMPLEMENTED[operation], *ONLY_IF_ASKED_FOR.get(operation, ()))


def row_limits(rows: Tensor, *others: Tensor) -> dict[str, str | None]:
    """What of these rows, [..., C], and tensors beside them the kernels of whole rows cannot do.

    As keywords of `resolve`. Of the others Triton takes every dtype.
    """
    columns = rows.shape[-1]
    double = "float64 runs in PyTorch only"
    triton_limit = cuda_limit = None
    if columns > WIDEST_ROW:
        triton_limit = f"rows of at most {WIDEST_ROW} only, got {columns}"
    if rows.dtype == torch.float64:
        triton_limit = double
    if any(tensor.dtype == torch.float64 for tensor in (rows, *others)):
        cuda_limit = double
    elif columns == 0:
        cuda_limit = "rows of no columns run in PyTorch and Triton only"
    return {"triton_limit": triton_limit, "cuda_limit": cuda_limit}


def probe() -> dict[str, dict[str, str]]:
    """For each op and each backend, `"available"` or the reason why it is absent.

    Of a GPU if torch sees one, else of the CPU.
    """
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        operation: {
            backend: _state(operation, backend, backend in implementations(operation), device_type)
            for backend in BACKENDS
        }
        for operation in IMPLEMENTED
    }


def _state(operation: str, backend: str, implemented: bool, device_type: str) -> str:
    if not implemented:
        return f"absent: this version has no {backend} implementation of {operation}"
    reason = absence(operation, backend, device_type)
    return "available" if reason is None else f"absent: {reason}"


def absence(operation: str, backend: str, device_type: str) -> str | None:
    """Why this backend cannot run on tensors of this device type, or None where it can."""
    if backend == "torch":
        return None
    if backend == "cuda":
        return cuda_absence(device_type)
    if backend == "cpp":
        return cpp_absence(device_type)
    if backend == "gluon":
        return gluon_absence(device_type)
    return triton_absence(device_type, ROWS if operation in ROW_OPERATIONS else HOPPER)
