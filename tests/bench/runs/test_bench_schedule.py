"""The simulated schedule of packed rows."""

from statistics import fmean

import pytest

from bench.harness.documents import Kind
from bench.runs import schedule
from metamorph.planning.assumed_samples import FAMILIES
from metamorph_kernels.aot.schedule import KERNELS, early_first, late_first, longest_first

BAR = 0.03  # of the time of all SMs


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(schedule, "ROWS", 2)


def idle(kernel, order, histogram, tokens):
    tiling = KERNELS[kernel]
    return fmean(
        schedule.counted(tiling, order(tiling.steps(row))).idle
        for row in schedule.rows(histogram, tokens)
    )


@pytest.mark.parametrize("tokens", [16384, 32768])
@pytest.mark.parametrize("histogram", ["benchmark", "mixture"])
def test_hardly_an_sm_waits_for_another(histogram, tokens):
    assert idle("forward", late_first, histogram, tokens) <= BAR
    assert idle("query gradient", late_first, histogram, tokens) <= BAR
    assert idle("key value gradient", longest_first, histogram, tokens) <= BAR


def test_tiles_of_keys_need_the_order_of_their_length():
    assert idle("key value gradient", early_first, "benchmark", 16384) > BAR


def test_families_become_kinds():
    [captions] = schedule.kinds_of(FAMILIES["align"])
    assert captions == Kind(share=1, shortest=75, longest=302, images=1)  # 151 tokens each


def test_the_share_of_starts():
    # Three tiles of 100 clocks of start, and four steps of 2048.
    share = schedule.start_share(KERNELS["forward"], [[1, 2], [1]], 100)
    assert share == pytest.approx(300 / (300 + 4 * 2048))


def test_the_table_has_a_line_for_each_case(monkeypatch):
    monkeypatch.setattr(schedule, "TOKENS", (256,))
    head, rule, *lines = schedule.table()
    assert len(lines) == len(schedule.HISTOGRAMS) * len(KERNELS)
    assert {line.count("|") for line in (head, rule, *lines)} == {11}
    assert lines[0].startswith("| benchmark | 256 | forward | 0.5 | ")
