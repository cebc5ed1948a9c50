import pytest

from bench.harness.results import failed, ours_failed, timed
from bench.harness.timing import Candidate, Timing


def test_a_peer_that_fails_does_not_fail_the_run():
    assert not ours_failed([failed("op", "case", "FlexAttention", RuntimeError("x"))])
    assert ours_failed([failed("op", "case", "ours triton", RuntimeError("x"))])


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
