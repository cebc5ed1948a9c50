"""Calls of rows_on_cpu.cu, the row functions compiled for the CPU, with tensors."""

import ctypes
import math

import torch
from row_truth import gradient_dtype

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Element of kernels.h
int64, pointer = ctypes.c_int64, ctypes.c_void_p


def structure(name: str, **fields: type) -> type:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Rows = structure("Rows", data=pointer, element=ctypes.c_int, stride=int64)
CosineRows = structure(
    "CosineRows",
    prediction=Rows,
    target=Rows,
    target_index=pointer,
    rows=int64,
    targets=int64,
    columns=int64,
    mean=ctypes.c_bool,
    count=pointer,
    losses=pointer,
    gradient=pointer,
)
PoolNormalize = structure(
    "PoolNormalize",
    tokens=Rows,
    image_stride=int64,
    images=int64,
    columns=int64,
    side=ctypes.c_int,
    grid=ctypes.c_int,
    pooled=pointer,
)
QuantiseRows = structure(
    "QuantiseRows",
    x=Rows,
    rows=int64,
    columns=int64,
    with_gelu=ctypes.c_bool,
    values=pointer,
    scales=pointer,
)
Scale = structure("Scale", values=pointer, element=ctypes.c_int, count=int64, factor=pointer)


def rows_of(tensor: torch.Tensor) -> Rows:
    return Rows(tensor.data_ptr(), ELEMENTS[tensor.dtype], tensor.stride(-2))


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def run_cosine(
    library,
    prediction,
    target,
    index=None,
    *,
    threads=32,
    with_gradient=True,
    mean=False,
    count=None,
):
    """Losses, gradient (or None), and whether the rows were held."""
    losses = torch.full((len(prediction),), math.nan)
    gradient = None
    if with_gradient:
        gradient = torch.full(prediction.shape, math.nan, dtype=gradient_dtype(prediction))
    arguments = CosineRows(
        rows_of(prediction),
        rows_of(target),
        address(index),
        *prediction.shape[:1],
        *target.shape,
        mean,
        address(count),
        losses.data_ptr(),
        address(gradient),
    )
    held = library.cosine_rows_on_cpu(ctypes.byref(arguments), threads)
    return losses, gradient, bool(held)


def run_pool(library, features, grid, *, threads=32):
    images, tokens, columns = features.shape
    pooled = torch.full((images, grid * grid, columns), math.nan, dtype=features.dtype)
    arguments = PoolNormalize(
        rows_of(features),
        features.stride(0),
        images,
        columns,
        math.isqrt(tokens),
        grid,
        pooled.data_ptr(),
    )
    held = library.pool_normalize_on_cpu(ctypes.byref(arguments), threads)
    return pooled, bool(held)


def run_quantise(library, x, gelu=False, *, threads=32):
    values = torch.full(x.shape, math.nan).to(torch.float8_e4m3fn)
    scales = torch.full((len(x),), math.nan)
    arguments = QuantiseRows(rows_of(x), *x.shape, gelu, values.data_ptr(), scales.data_ptr())
    held = library.quantise_rows_on_cpu(ctypes.byref(arguments), threads)
    return values, scales, bool(held)


def run_scale(library, values, factor, *, threads=3, teams=2):
    factor = torch.tensor(factor)
    arguments = Scale(values.data_ptr(), ELEMENTS[values.dtype], values.numel(), factor.data_ptr())
    library.scale_on_cpu(ctypes.byref(arguments), threads, int64(teams))
