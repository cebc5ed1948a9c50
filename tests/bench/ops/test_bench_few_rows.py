"""A few rows times a matrix: every provider computes it, on a CPU."""

import pytest
import torch

from bench.ops import few_rows
from bench.runs import entries
from metamorph_kernels import cpp_absence

pytestmark = pytest.mark.usefixtures("few_repeats")


def test_an_entry_verifies_and_times_all_that_runs_here():
    case = few_rows.Case("tiny", 7, 20, rows=3)
    assert case.flops == 2 * 3 * 7 * 20
    found = {result.provider: result for result in case.run(torch.device("cpu"))}
    assert set(found) == {provider.name for provider in few_rows.PROVIDERS}
    for name, result in found.items():
        if name != "ours cpp" or cpp_absence("cpu") is None:
            assert result.status == "ok" and result.rate > 0, result


def test_the_entries_are_for_a_cpu():
    assert {"linear-16-qkv", "linear-16-gate-up", "linear-16-down"} <= entries.entries("cpu").keys()
    assert not few_rows.cases("cuda")
