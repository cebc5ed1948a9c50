"""The CUDA C++ ops of csrc/: where their library is, why it may be absent, and Python functions.

The library stands beside this file if it was built; it is loaded when first asked for. The ops
have no autograd of their own: `cosine_rows` returns the gradient itself. Rows whose columns are not
neighbours in memory are copied first; the distance of rows is free.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from metamorph_kernels.absence import gpu_absence
from metamorph_kernels.arguments import neighbouring_columns
from metamorph_kernels.compiled_library import load_library
from metamorph_kernels.graphs import constant_in_graphs

LIBRARY = Path(__file__).with_name("metamorph_ops.abi3.so")
CAPABILITY = (8, 0)  # the oldest GPUs that CMakeLists.txt compiles for


@constant_in_graphs
def cuda_absence(device_type: str) -> str | None:
    """Why the CUDA library cannot run on tensors of this device type, or None where it can."""
    return _load() or gpu_absence(device_type, CAPABILITY)


def cosine_rows(
    prediction: Tensor,
    target: Tensor,
    target_index: Tensor | None = None,
    *,
    with_gradient: bool,
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses 1 - cos of rows, float32 [N], and their gradient to prediction, [N, C].

    prediction [N, C] and target [M, C], each float32, bfloat16 or float16. Row i meets the row
    target_index[i] of target, int64 [N]: a negative index means none, with loss and gradient 0, and
    an index from M on makes both NaN. Without an index M = N and row i meets row i. Rows too short
    or too long for float32 have loss 1 and gradient 0, as in `cosine_loss`.

    The gradient is of shape [0] unless asked for. It has the prediction's dtype, but is float32
    beside float16: before it meets the cotangent, it may be too large or small for float16. With
    `mean` it is divided by the number of rows that count, all but those of a negative index; the
    losses are not.

    Raises ValueError where the library cannot run, RuntimeError for tensors that do not fit.
    """
    _require(prediction)
    mean = mean and with_gradient
    count = None
    if target_index is not None:
        target_index = target_index.contiguous()
        count = (target_index >= 0).sum() if mean else None
    return torch.ops.metamorph_ops.cosine_rows(
        *map(neighbouring_columns, (prediction, target)), target_index, with_gradient, mean, count
    )


def scale_rows(matrix: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [N, C] in `dtype`, each row times its factor, float32 [N]; by PyTorch."""
    return torch.mul(matrix, factors[:, None], out=matrix.new_empty(matrix.shape, dtype=dtype))


def pool_normalize_rows(features: Tensor, grid: int) -> Tensor:
    """What `pool_normalize` computes, [B, grid * grid, C] in the dtype of features [B, N, C].

    N is a square; float32, bfloat16 or float16. Reads four tokens for each that it writes.

    Raises ValueError where the library cannot run, RuntimeError for a tensor that does not fit.
    """
    _require(features)
    return torch.ops.metamorph_ops.pool_normalize(neighbouring_columns(features), grid)


def quantise_rows(x: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """x [N, C], or its exact GELU, as float8_e4m3fn [N, C], and the float32 scales [N] of its rows.

    x is float32, bfloat16 or float16. The scale of a row is its largest magnitude / 448, or 1 for a
    row of zeros. A row that holds a NaN or an infinity becomes NaN throughout.

    Raises ValueError where the library cannot run, RuntimeError for a tensor that does not fit.
    """
    _require(x)
    return torch.ops.metamorph_ops.quantise_rows(neighbouring_columns(x), gelu)


def scale_in_place(values: Tensor, factor: Tensor) -> None:
    """Multiply contiguous values, float32, bfloat16 or float16, by a float32 factor, [] or [1].

    The factor, no part of the values, is read on the GPU alone. Where it is exactly 1, the values
    are neither read nor written.

    Raises ValueError where the library cannot run, RuntimeError for tensors that do not fit.
    """
    _require(values)
    torch.ops.metamorph_ops.scale_(values, factor)


def _require(tensor: Tensor) -> None:
    reason = cuda_absence(tensor.device.type)
    if reason is not None:
        raise ValueError(f"the CUDA library cannot run here: {reason}")


@cache
def _load() -> str | None:
    """Load the library; why that failed, or None."""
    return load_library(LIBRARY, "METAMORPH_CUDA", "metamorph_ops", FAKES)


def _fake_cosine_rows(
    prediction: Tensor,
    target: Tensor,
    target_index: Tensor | None,
    with_gradient: bool,
    mean: bool,
    count: Tensor | None,
) -> tuple[Tensor, Tensor]:
    losses = prediction.new_empty(prediction.shape[0], dtype=torch.float32)
    dtype = torch.float32 if prediction.dtype == torch.float16 else prediction.dtype
    return losses, prediction.new_empty(prediction.shape if with_gradient else 0, dtype=dtype)


def _fake_pool_normalize(features: Tensor, grid: int) -> Tensor:
    return features.new_empty(features.shape[0], grid * grid, features.shape[2])


def _fake_quantise_rows(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    values = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    return values, x.new_empty(x.shape[0], dtype=torch.float32)


FAKES = {
    "cosine_rows": _fake_cosine_rows,
    "pool_normalize": _fake_pool_normalize,
    "quantise_rows": _fake_quantise_rows,
    "scale_": lambda values, factor: None,
}
