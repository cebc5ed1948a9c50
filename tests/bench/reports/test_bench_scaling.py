from dataclasses import replace

import pytest
from bench_records import line, timing

from bench.harness.timing import Timing
from bench.ops import attention, decode, mlp, prefill, text_loss
from bench.reports.scaling import fit, kind, series


def found(*cases):
    results = [line("op", str(case), "ours", index + 1.0) for index, case in enumerate(cases)]
    return [
        (each.case, each.axis, [size for size, _ in each.lines["ours"]]) for each in series(results)
    ]


def test_the_size_that_varies_is_the_axis():
    cases = ["64 rows of 96, bfloat16", "4096 rows of 96, bfloat16", "512 rows of 96, bfloat16"]
    assert found(*cases) == [("N rows of 96, bfloat16", "rows", [64, 512, 4096])]
    assert found(*cases[:2]) == []
    assert found(*cases[:2], "512 rows of 95, bfloat16") == []


def test_times_that_were_taken_once_make_no_series():
    results = [line("op", f"{rows} rows", "ours", 1.0) for rows in (1, 2, 3)]
    assert series(results)
    assert not series([replace(r, timing=Timing([1.0], None, None)) for r in results])


def test_sizes_that_change_together_are_one_axis():
    cases = [f"{n // 4} of {n} tokens, 8 to 100" for n in (64, 128, 256)]
    expected = [("... of N tokens, 8 to 100", "tokens", [64, 128, 256])]
    assert found(*cases) == found(*cases, "64 of 256 tokens, 8 to 96") == expected


def test_two_sizes_that_vary_by_themselves_are_two_axes():
    cases = [f"{rows} rows, batch {batch}" for rows in (1, 2, 3) for batch in (4, 5, 6)]
    names = [name for name, *_ in found(*cases)]
    assert names == [f"N rows, batch {b}" for b in (4, 5, 6)] + [
        f"{r} rows, batch N" for r in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (attention, {("tokens", 2048, 32768), ("tokens", 2048, 131_072), ("documents", 1, 512)}),
        (mlp, {("rows", 64, 65536)}),
        (text_loss, set()),
        (decode, {("sequences", 1, 64)}),
        (prefill, set()),
    ],
)
def test_axes_of_the_real_cases(module, expected):
    assert {
        (axis, sizes[0], sizes[-1]) for _, axis, sizes in found(*module.cases("cuda"))
    } == expected


def test_a_kind_is_a_case_without_sizes():
    assert kind("3 images, 27 x 27 to 8 x 8, bfloat16") == "# images, # x # to # x #, bfloat16"


def test_the_fit_is_that_of_a_power():
    exact = fit([(size, timing(3e-3 * size**1.5)) for size in (16, 64, 1024)])
    assert exact.exponent == pytest.approx(1.5) and exact.deviation == pytest.approx(0, abs=1e-9)
    # From one size to the next twice as long, then as long again: half a power, and 2^(1/3) off.
    bent = fit([(1, timing(1.0)), (2, timing(2.0)), (4, timing(2.0))])
    assert bent.exponent == pytest.approx(0.5)
    assert bent.deviation == pytest.approx(2 ** (1 / 3) - 1)
    assert fit([(1, timing(1.0)), (2, timing(2.0))]) is None
