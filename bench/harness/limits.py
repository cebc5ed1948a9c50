"""What this device can do at most, measured in the process that measures everything else."""

from dataclasses import dataclass
from functools import partial

import torch

from bench.harness.timing import Candidate, measure
from bench.harness.verification import relative_error
from metamorph.costs.hardware import GPUS
from metamorph_kernels.absence import gpu_absence
from metamorph_kernels.float8 import CAPABILITY, E4M3

# Dense bfloat16 and float8, from the vendor's data sheets, by the name that torch gives.
NOMINAL = {"NVIDIA H100 80GB HBM3": GPUS["h100"], "NVIDIA H200": GPUS["h200"]}
JUDGED = slice(0, 64)  # rows of a product
# float8 sums in fewer bits than float32 where that is fastest; a wrong product errs by 1.
BOUND, FLOAT8_BOUND = 1e-2, 5e-2


@dataclass(frozen=True)
class Limits:
    """Bytes read plus written by a large copy; a large matrix product; what the vendor says.

    `float8_absence` says why there is no float8 product, or None where there is one.
    """

    copy_gigabytes_per_second: float
    matmul_teraflops: float
    nominal_teraflops: float | None
    float8_teraflops: float | None
    nominal_float8_teraflops: float | None
    float8_absence: str | None


def measure_limits(device: torch.device) -> Limits:
    """The ceilings of `device`; bfloat16 products on a GPU, float32 on a CPU."""
    large = device.type == "cuda"
    elements, size = (2**30, 8192) if large else (2**22, 256)
    candidates = {"copy": _copy(elements, device), "product": _product(size, device)}
    absence = gpu_absence(device.type, CAPABILITY)
    if absence is None:
        try:
            candidates["float8"] = _float8_product(size, device)
        except Exception as error:  # a private function of torch: the other ceilings stand
            absence = f"{type(error).__name__}: {error}".splitlines()[0]
    times = measure(candidates, device, seconds=0.3 if large else 0.05)
    teraflops = {
        name: 2 * size**3 / times[name].milliseconds / 1e9 for name in times if name != "copy"
    }
    name = torch.cuda.get_device_name(device) if large else None
    nominal = NOMINAL[name].teraflops if name in NOMINAL else {}
    return Limits(
        copy_gigabytes_per_second=2 * elements / times["copy"].milliseconds / 1e6,
        matmul_teraflops=teraflops["product"],
        nominal_teraflops=nominal.get("bf16"),
        float8_teraflops=teraflops.get("float8"),
        nominal_float8_teraflops=nominal.get("fp8"),
        float8_absence=absence,
    )


def _copy(elements: int, device: torch.device) -> Candidate:
    source = torch.randint(-128, 128, (elements,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    error = 0.0 if torch.equal(source, target) else float("nan")
    return Candidate(target.copy_, lambda _: (source,), error, bound=0.0)


def _product(size: int, device: torch.device) -> Candidate:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    factors = [_normal(size, device).to(dtype) for _ in range(4)]
    error = _error(torch.matmul, *factors[:2])
    return Candidate(torch.matmul, lambda repeat: _pair(factors, repeat), error, BOUND)


def _float8_product(size: int, device: torch.device) -> Candidate:
    """Raises ArithmeticError where it is wrong: an absent ceiling is better than no result."""
    scale = torch.ones((), device=device)
    multiply = partial(
        torch._scaled_mm,
        scale_a=scale,
        scale_b=scale,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    # The right one is transposed: tensor cores take float8 along the rows of both only.
    left, right, other_left, other_right = (_normal(size, device).to(E4M3) for _ in range(4))
    factors = [left, right.t(), other_left, other_right.t()]
    error = _error(multiply, *factors[:2])
    if not error <= FLOAT8_BOUND:
        raise ArithmeticError(f"error {error:.1e}, bound {FLOAT8_BOUND:.1e}")
    return Candidate(multiply, lambda repeat: _pair(factors, repeat), error, FLOAT8_BOUND)


def _normal(size: int, device: torch.device) -> torch.Tensor:
    return torch.randn(size, size, device=device)


def _pair(factors: list[torch.Tensor], repeat: int) -> list[torch.Tensor]:
    return factors[:2] if repeat % 2 == 0 else factors[2:]


def _error(multiply, left: torch.Tensor, right: torch.Tensor) -> float:
    return relative_error(multiply(left, right)[JUDGED], left[JUDGED].double() @ right.double())
