"""Checks of the tensors that public ops take; only shapes, dtypes and devices, never values."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_floating(**tensors: Tensor) -> None:
    """Raise ValueError unless all are floating-point tensors on the device of the first."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        check_dense(name, tensor)
        if tensor.dtype not in FLOATING:
            raise ValueError(
                f"{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{name}: expected device {first.device} as {first_name} has, got {tensor.device}"
            )


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is one whose numbers lie in memory at strides."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise ValueError(f"{name}: expected a dense tensor, got a nested one")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
    # Such as a DTensor: kernels would take the address of a shell.
    if not torch.compiler.is_compiling() and is_traceable_wrapper_subclass(tensor):
        raise ValueError(f"{name}: expected a plain tensor, got {type(tensor).__name__}")


def same_dtype(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one dtype: cast where autocast is on, checked where it is off.

    Raises ValueError as `check_floating` does, and for a dtype that differs from the first one's.
    """
    check_floating(**tensors)
    first_name, first = next(iter(tensors.items()))
    device_type = first.device.type
    has_autocast = torch.amp.is_autocast_available(device_type)  # meta tensors have none
    if has_autocast and torch.is_autocast_enabled(device_type) and first.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        return tuple(tensor.to(dtype) for tensor in tensors.values())
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"{name}: expected {first.dtype} as {first_name} has, got {tensor.dtype}"
            )
    return tuple(tensors.values())


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Operators on the device of `tensor` compute in the dtypes they are given."""
    device_type = tensor.device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def neighbouring_columns(tensor: Tensor) -> Tensor:
    """The tensor itself where the numbers of a row are neighbours in memory, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def check_integers(
    name: str,
    tensor: Tensor,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Raise ValueError unless `tensor` has one of `dtypes` and is on `device`, if one is given."""
    check_dense(name, tensor)
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name}: expected {expected}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}")


def check_shape(name: str, tensor: Tensor, letters: str, *sizes: int | None) -> None:
    """Raise ValueError unless `tensor` has the given sizes; None leaves a size free."""
    shape = tensor.shape
    if len(shape) == len(sizes):
        for size, actual in zip(sizes, shape, strict=True):
            if size is not None and size != actual:
                break
        else:
            return
    wanted = ", ".join("any" if size is None else str(size) for size in sizes)
    raise ValueError(f"{name}: expected shape [{letters}] = [{wanted}], got {list(shape)}")


def check_heads(query: Tensor, key: Tensor) -> None:
    """Raise ValueError unless the key heads divide the query heads; heads stand second to last."""
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2] != 0:
        raise ValueError(
            f"q: expected heads in a multiple of the {key.shape[-2]} key heads, "
            f"got {query.shape[-2]}"
        )


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is one of the three that the losses take."""
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: expected 'none', 'mean' or 'sum', got {reduction!r}")


def softmax_scale(scale: float | None, head_dim: int) -> float:
    """`scale`, or 1 / sqrt(head_dim) for None; ValueError unless it is positive and finite."""
    if head_dim == 0:
        raise ValueError("q: expected heads of one column or more, got 0")
    if scale is None:
        return 1 / math.sqrt(head_dim)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a positive number, got {scale!r}")
    return float(scale)
