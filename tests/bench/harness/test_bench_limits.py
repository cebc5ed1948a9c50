import torch

from bench.harness import limits
from bench.harness.limits import measure_limits

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
