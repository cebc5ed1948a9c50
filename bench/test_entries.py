"""Every entry as a test: it fails if anything of ours fails, and pytest-benchmark has the times."""

import copy

import pytest
import torch

from bench.harness.results import Result, is_ours, write_record
from bench.runs.entries import record


class RecordedClock:
    """A timer for pytest-benchmark that goes on by recorded samples alone.

    Candidates are timed in turn and after verification by `bench.harness.timing`, which
    pytest-benchmark cannot do; what it shows, compares and saves are those very samples.
    """

    def __init__(self):
        self.now = 0.0  # seconds

    def __call__(self) -> float:
        return self.now

    def replay(self, benchmark, samples: list[float]) -> None:
        """One round a sample, in milliseconds."""
        recorded = iter(samples)
        benchmark.pedantic(lambda: self.advance(next(recorded)), rounds=len(samples))

    def advance(self, milliseconds: float) -> None:
        self.now += milliseconds / 1e3


CLOCK = RecordedClock()


@pytest.mark.benchmark(timer=CLOCK)
def test_entry(entry, device, benchmark, kept):
    if benchmark.disabled:
        pytest.skip("an entry measures; there is nothing else to it")
    torch.manual_seed(0)
    found = record(entry, device)
    write_record(kept(entry.name), entry.name, found)
    results = found["results"]
    wrong = [
        f"{r.provider}: {r.reason}" for r in results if r.status == "failed" and is_ours(r.provider)
    ]
    assert not wrong, "; ".join(wrong)
    lines = [result for result in results if result.timing is not None]
    if not lines:
        pytest.skip("; ".join(dict.fromkeys(result.reason for result in results)))
    # The fixture makes one line; its copies, made before it is used, make the others.
    for line, fixture in zip(
        lines, [benchmark, *(copy.copy(benchmark) for _ in lines[1:])], strict=True
    ):
        describe(fixture, line)
        CLOCK.replay(fixture, line.timing.samples)


def describe(benchmark, line: Result) -> None:
    """Name, group and all that the table of pytest-benchmark has no column for."""
    benchmark.name = line.provider
    benchmark.group = ", ".join(filter(None, (line.operation, line.case)))
    benchmark.extra_info = {
        "rate": line.rate,
        "unit": line.unit,
        "error": line.error,
        "bound": line.bound,
        "peak_gigabytes": line.timing.peak_gigabytes,
    }
