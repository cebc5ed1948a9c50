import pytest
import torch

from bench.harness import limits
from bench.harness.limits import measure_limits
from bench.harness.results import timed
from bench.harness.timing import Candidate, Timing

CPU = torch.device("cpu")


def test_a_cpu_has_no_float8_ceiling_and_says_why():
    found = measure_limits(CPU)
    assert found.float8_teraflops is None and found.nominal_float8_teraflops is None
    assert found.float8_absence == "no kernels for cpu devices"


def test_the_float8_product_is_verified(monkeypatch):
    monkeypatch.setattr(limits, "gpu_absence", lambda *_: None)
    found = measure_limits(CPU)  # torch has the product for CPUs as well
    assert found.float8_teraflops > 0 and found.float8_absence is None

    right = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *x, **options: 1.1 * right(*x, **options))
    found = measure_limits(CPU)
    assert found.float8_teraflops is None and found.matmul_teraflops > 0
    assert found.float8_absence == "ArithmeticError: error 1.0e-01, bound 5.0e-02"


@pytest.mark.parametrize(
    ("float8", "unit", "expected"),
    [
        (True, "TFLOP/s", "TFLOP/s fp8"),
        (False, "TFLOP/s", "TFLOP/s"),
        (True, "GB/s", "GB/s"),
    ],
)
def test_float8_work_has_a_unit_of_its_own(float8, unit, expected):
    candidate = Candidate(print, lambda _: (), error=0, bound=0, float8=float8)
    times = Timing([2.0], None, None)
    result = timed("op", "case", "ours", candidate, times, work=4e9, unit=unit)
    assert result.unit == expected
    assert result.rate == pytest.approx(4e9 / 2e-3 / (1e12 if "FLOP" in unit else 1e9))
