import pytest
import torch

from bench.harness import verification
from bench.harness.documents import SyntheticRow
from bench.harness.verification import LARGEST_ERROR, error_bound, exact_attention, relative_error
from metamorph_kernels import reference

CPU = torch.device("cpu")


def test_exact_attention_is_the_definition(monkeypatch):
    monkeypatch.setattr(verification, "QUERIES_AT_ONCE", 5)  # parts that cut documents and spans
    intervals = SyntheticRow((4, 9, 1, 8), ((1, 3), (6, 12), (15, 22))).intervals(CPU)
    leaves = [torch.randn(22, heads, 6).double().requires_grad_() for heads in (4, 2, 2)]
    out_gradient = torch.randn(22, 4, 6).double()
    out = reference.interval_attention(*leaves, intervals)
    expected = (out, *torch.autograd.grad(out, leaves, out_gradient))
    found = exact_attention(*leaves, out_gradient, intervals.row_start, intervals.row_end)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_no_bound_forgives_a_wrong_yardstick_or_a_nan():
    assert error_bound(1e-3, "bfloat16") == pytest.approx(2e-3, rel=0.02)
    assert error_bound(0.5, "bfloat16") == LARGEST_ERROR["bfloat16"]
    poisoned = torch.ones(130, 2, 4)
    poisoned[129, 1, 3] = float("nan")
    assert not relative_error(poisoned, torch.ones(130, 2, 4)) <= 1e9


def test_one_wrong_row_does_not_drown():
    exact = torch.randn(10_000, 2, 8)
    actual = exact.clone()
    assert relative_error(actual, exact) == 0
    actual[777, 1] *= 2
    assert relative_error(actual, exact) > 0.05
