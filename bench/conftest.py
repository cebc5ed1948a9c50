"""`pytest bench --benchmark-only`: every entry that this machine can run, a test each."""

import os
from pathlib import Path

import pytest
import torch

from bench.harness.results import read_records
from bench.reports.tables import text
from bench.runs.entries import entries

RUN = pytest.StashKey[list[str]]()  # names of the entries that left a record


def pytest_addoption(parser):
    group = parser.getgroup("bench")
    group.addoption(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto is cuda where it is"
    )
    group.addoption("--quick", action="store_true", help="the main sizes only")
    group.addoption(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT", "bench/out")),
        help="folder of results, for python -m bench.reports (default: $OUT, or bench/out)",
    )


def pytest_configure(config):
    config.stash[RUN] = []


def device_type(config: pytest.Config) -> str:
    chosen = config.getoption("--device")
    if chosen == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return chosen


def pytest_generate_tests(metafunc):
    if "entry" in metafunc.fixturenames:
        quick = metafunc.config.getoption("--quick")
        found = entries(device_type(metafunc.config)).values()
        chosen = [entry for entry in found if entry.quick or not quick]
        metafunc.parametrize("entry", chosen, ids=lambda entry: entry.name)


@pytest.fixture
def device(request) -> torch.device:
    return torch.device(device_type(request.config))


@pytest.fixture
def kept(request):
    """`kept(name)`: its record will be in the summary. Returns the folder to write it to."""

    def keep(name: str) -> Path:
        request.config.stash[RUN].append(name)
        return request.config.getoption("--out")

    return keep


@pytest.hookimpl(trylast=True)  # below the tables of pytest-benchmark
def pytest_terminal_summary(terminalreporter, config):
    """Our own tables: rate, share of the measured limit, ratio to ours, error."""
    names = config.stash[RUN]
    if names:
        records = read_records(config.getoption("--out"))
        terminalreporter.section("bench")
        terminalreporter.write_line(text({name: records[name] for name in names}))
