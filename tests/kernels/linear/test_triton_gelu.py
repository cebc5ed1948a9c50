"""The approximation of the GELU for 16 bits, at every number of them."""

import math

import pytest
import torch
import triton
import triton.language as tl

from metamorph_kernels.gelu import gelu, gelu_and_slope

LEAST = 2.0**-122  # float32 ends soon below, and a tail may be flushed to zero
ELEMENT = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def evaluate(z_ptr, alone_ptr, value_ptr, slope_ptr, dtype: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + place)
    value, slope = gelu_and_slope(z, dtype)
    tl.store(alone_ptr + place, gelu(z, dtype))
    tl.store(value_ptr + place, value)
    tl.store(slope_ptr + place, slope)


def value_and_slope(z, dtype):
    """float32 [N] for float32 z [N], N a multiple of 1024, as kernels for `dtype` have them."""
    alone, value, slope = (torch.empty_like(z) for _ in range(3))
    evaluate[(len(z) // 1024,)](z, alone, value, slope, ELEMENT[dtype], BLOCK=1024)
    # The same formula twice in one kernel: a compiler may fuse its products and sums differently.
    torch.testing.assert_close(alone, value, rtol=1e-6, atol=2.0**-120, equal_nan=True)
    return value, slope


def every_number(dtype, device):
    bits = torch.arange(2**16, dtype=torch.int32, device=device).to(torch.int16)
    return bits.view(dtype)


def exact(z):
    below = torch.special.erfc(-z / math.sqrt(2)) / 2
    return z * below, below + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def last_place(number, dtype):
    """The distance of neighbours in `dtype` at float64 numbers."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(number.abs().clamp(min=limits.smallest_normal))
    return torch.ldexp(torch.full_like(number, limits.eps), exponent - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_value_and_slope_are_within_six_tenths_of_the_last_place(device, dtype):
    z = every_number(dtype, device)
    z = z.where(z.isfinite(), 0).float()
    for actual, truth in zip(value_and_slope(z, dtype), exact(z.double()), strict=True):
        error = (actual.to(dtype).double() - truth).abs()
        error = error.where(error > LEAST, 0) / last_place(truth, dtype)
        assert error.max() <= 0.6, z[error.argmax()].item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_value_and_slope_before_rounding(device, dtype):
    z = torch.linspace(-16, 16, 2**16, device=device)
    for actual, truth in zip(value_and_slope(z, dtype), exact(z.double()), strict=True):
        assert (actual - truth).abs().max() < 3e-5


def test_float32_takes_erf(device):
    z = torch.linspace(-8, 8, 2**14, device=device)
    for actual, truth in zip(value_and_slope(z, torch.float32), exact(z.double()), strict=True):
        torch.testing.assert_close(actual.double(), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ends(device, dtype):
    """Far out it is the identity or zero, and what is no number stays none."""
    z = torch.zeros(1024, device=device)
    z[:5] = torch.tensor([math.inf, -math.inf, 60000.0, -60000.0, math.nan])
    value, slope = value_and_slope(z, dtype)
    assert value[:4].tolist() == [math.inf, 0, 60000, 0] and value[4].isnan()
    assert slope[:4].tolist() == [1, 0, 1, 0] and slope[4].isnan()
    assert value[5:].eq(0).all()
