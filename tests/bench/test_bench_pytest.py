"""`pytest bench --benchmark-only`, in a process of its own with entries made for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Loaded as a plugin: replaces the entries before bench/conftest.py asks for them.
PLUGIN = """
import bench.conftest
from bench.harness.results import Result, Timing, failed

class Entry:
    quick = True
    def __init__(self, name, results):
        self.name, self.results = name, results
    def run(self, device):
        return self.results

def line(provider, samples):
    timing = Timing(samples, None, None)
    return Result("op", "7 rows", provider, "ok", "", timing, 3.0, "GB/s", error=0.0, bound=0.1)

absent = Result("op", "7 rows", "peer", "absent", "not installed")
every = [
    Entry("right", [line("ours", [4.0, 2.0, 3.0]), line("peer", [6.0, 6.0]), absent,
                    failed("op", "7 rows", "another peer", "wrong: error 1")]),
    Entry("wrong", [failed("op", "7 rows", "ours", "wrong: error 1"), line("peer", [6.0, 6.0])]),
    Entry("nobody", [absent]),
]
every[1].quick = False
bench.conftest.entries = lambda device_type: {entry.name: entry for entry in every}
"""


def session(folder, *options):
    (folder / "made_entries.py").write_text(PLUGIN)
    paths = [str(folder), str(ROOT), str(ROOT / "kernels")]
    # pytest-benchmark takes no time in a process of pytest-xdist, which this test may run in.
    environment = {key: value for key, value in os.environ.items() if "XDIST" not in key}
    command = [sys.executable, "-m", "pytest", "bench", "-p", "made_entries", "--device", "cpu"]
    command += ["--out", str(folder / "out"), "--benchmark-json", str(folder / "saved.json")]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-rs", *options],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    saved = json.loads((folder / "saved.json").read_text() or "{}")
    return done, saved.get("benchmarks", [])


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return session(tmp_path_factory.mktemp("bench"), "--benchmark-only")


def test_lines_have_the_recorded_samples_of_verified_results(everything):
    _, benchmarks = everything
    found = {each["name"]: each for each in benchmarks}
    assert set(found) == {"ours", "peer"}  # a peer that fails has no time
    assert found["ours"]["stats"]["data"] == pytest.approx([4e-3, 2e-3, 3e-3])
    assert found["ours"]["stats"]["median"] == pytest.approx(3e-3)
    assert found["peer"]["stats"]["rounds"] == 2
    assert {each["group"] for each in benchmarks} == {"op, 7 rows"}
    assert found["ours"]["extra_info"]["rate"] == 3.0


def test_an_entry_fails_with_ours_and_is_skipped_where_nobody_runs(everything):
    done, _ = everything
    assert done.returncode == 1
    assert "ours: wrong: error 1" in done.stdout
    assert "not installed" in done.stdout
    assert "1 failed, 1 passed, 1 skipped" in done.stdout
    # Our own table stands below that of pytest-benchmark.
    assert done.stdout.index("Rounds") < done.stdout.index("of measured")


def test_quick_is_a_part(tmp_path):
    done, _ = session(tmp_path, "--benchmark-only", "--quick")
    assert done.returncode == 0
    assert "1 passed, 1 skipped" in done.stdout
