"""What this device can do at most, measured in the process that measures everything else."""

from dataclasses import dataclass

import torch

from bench.timing import Candidate, measure
from bench.verification import relative_error

# Dense bfloat16, from the vendor's data sheets, by the name that torch gives.
NOMINAL_TERAFLOPS = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H200": 989.4}


@dataclass(frozen=True)
class Limits:
    """Bytes read plus written by a large copy; a large matrix product; what the vendor says."""

    copy_gigabytes_per_second: float
    matmul_teraflops: float
    nominal_teraflops: float | None


def measure_limits(device: torch.device) -> Limits:
    """The ceilings of `device`; bfloat16 products on a GPU, float32 on a CPU."""
    large = device.type == "cuda"
    elements, size = (2**30, 8192) if large else (2**22, 256)
    dtype = torch.bfloat16 if large else torch.float32

    source = torch.randint(-128, 128, (elements,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copy = Candidate(
        run=target.copy_,
        arguments=lambda _: (source,),
        error=0.0 if torch.equal(source, target) else float("nan"),
        bound=0.0,
    )
    factors = [
        [torch.randn(size, size, dtype=dtype, device=device) for _ in range(2)] for _ in range(2)
    ]
    left, right = factors[0]
    rows = slice(0, 64)
    product = Candidate(
        run=torch.matmul,
        arguments=lambda repeat: tuple(factors[repeat % 2]),
        error=relative_error((left @ right)[rows], left[rows].double() @ right.double()),
        bound=1e-2,
    )
    times = measure({"copy": copy, "product": product}, device, seconds=0.3 if large else 0.05)
    name = torch.cuda.get_device_name(device) if large else None
    return Limits(
        copy_gigabytes_per_second=2 * elements / times["copy"].milliseconds / 1e6,
        matmul_teraflops=2 * size**3 / times["product"].milliseconds / 1e9,
        nominal_teraflops=NOMINAL_TERAFLOPS.get(name),
    )
