import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_cases import TINY_ATTENTION, TINY_DECODE

from bench.harness.results import FILE, Result, ours_failed, read_records
from bench.runs import entries, gpu
from bench.runs.gpu import Outcome, Step

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.usefixtures("few_repeats"),
]


@pytest.fixture
def tiny_entries(monkeypatch):
    attention = replace(TINY_ATTENTION, mask="one document")
    found = {case.name: case for case in (TINY_DECODE, attention)}
    monkeypatch.setattr(entries, "entries", lambda device_type: found)
    monkeypatch.setattr(gpu, "entries", lambda device_type: found)
    return found


def python(name, code, **options):
    return Step(name, [sys.executable, "-c", code], seconds=60, **options)


def checked(outcome):
    return Result("checks", "", "ours tests", "ok", outcome.output.strip())


def test_an_entry_writes_what_a_reader_needs_and_is_kept(tmp_path, capsys, tiny_entries):
    for name in tiny_entries:
        assert entries.main([name, "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "The times mean little" in printed and "ours torch" in printed

    saved = json.loads((tmp_path / FILE).read_text())
    assert set(saved) == set(tiny_entries)
    for record in saved.values():
        assert {"code", "device", "torch", "triton", "commit", "command"} <= set(record["machine"])
        assert record["limits"]["matmul_teraflops"] > 0
        for result in record["results"]:
            assert result["status"] in ("ok", "absent", "failed")
            if result["timing"] is not None:
                assert result["error"] <= result["bound"]

    planned = [python(name, "raise SystemExit('runs again')") for name in tiny_entries]
    shown = gpu.run_steps(planned, CPU, tmp_path, seconds=60)
    assert "kept from an earlier run" in capsys.readouterr().out
    assert shown == read_records(tmp_path)


def test_a_failing_step_is_a_line_and_the_others_go_on(tmp_path, capsys):
    planned = [
        python("checks", "print('3 passed')", judge=checked),
        python("attention-1", "import sys; print('illegal address'); sys.exit(7)"),
        Step("attention-2", [sys.executable, "-c", "import time; time.sleep(60)"], seconds=1),
        Step("attention-3", ["no-such-program"], seconds=1),
    ]
    shown = gpu.run_steps(planned, CPU, tmp_path, seconds=60)
    reasons = [record["results"][0].reason for record in shown.values()]
    assert reasons == [
        "3 passed",
        "exit status 7: illegal address",
        "stopped: out of time",
        "exit status 127: no-such-program is not on the PATH",
    ]
    assert [ours_failed(record["results"]) for record in shown.values()] == [0, 1, 1, 1]
    assert "illegal address" in (tmp_path / "log.txt").read_text()


def test_a_step_without_time_is_left_for_the_next_run(tmp_path, monkeypatch):
    planned = [python("attention-1", "import time; time.sleep(60)")]
    for least in (gpu.LEAST_SECONDS, 0):  # not begun, and cut off
        monkeypatch.setattr(gpu, "LEAST_SECONDS", least)
        shown = gpu.run_steps(planned, CPU, tmp_path, seconds=0.5)
        assert shown["attention-1"]["results"][0].reason == "no time left; run again to go on"
        assert read_records(tmp_path) == {}


def test_results_of_other_code_are_measured_again(tmp_path, monkeypatch):
    planned = [python("checks", "print('first')", judge=checked)]
    gpu.run_steps(planned, CPU, tmp_path, seconds=60)
    known = gpu.identity(CPU)
    monkeypatch.setattr(gpu, "identity", lambda device: known | {"code": "changed"})
    monkeypatch.setattr(gpu, "machine", lambda device: known | {"code": "changed", "commit": ""})
    planned = [python("checks", "print('second')", judge=checked)]
    shown = gpu.run_steps(planned, CPU, tmp_path, seconds=60)
    assert shown["checks"]["results"][0].reason == "second"


def test_main_ends_with_the_summary_and_says_if_ours_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    for code, status in (("print('fine')", 0), ("raise SystemExit('broken')", 1)):
        step = python("attention-1", code, judge=checked if status == 0 else None)
        monkeypatch.setattr(gpu, "steps", lambda *_, step=step: [step])
        assert gpu.main(["--device", "cpu", "--quick", "--fresh"]) == status
        printed = capsys.readouterr().out
        assert ("broken" if status else "fine") in printed.splitlines()[-1]
    assert "broken" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("status", "output", "expected", "reason"),
    [
        (0, "79 passed, 2 skipped in 3s", "ok", "79 passed, 2 skipped"),
        (0, "81 skipped in 3s", "absent", "81 skipped"),
        (1, "FAILED a/b.py::test_x[1] - assert\n1 failed, 2 passed in 3s", "failed", "test_x[1]"),
        (2, "ERROR a/b.py\nNo module named triton", "failed", "No module named triton"),
        (None, "...", "failed", "out of time"),
    ],
)
def test_verdict_of_the_tests(status, output, expected, reason):
    result = gpu._judge_tests("ours tests", Outcome(status, output))
    assert result.status == expected and reason in result.reason


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "===== ERROR SUMMARY: 0 errors", "ok"),
        (1, "===== ERROR SUMMARY: 3 errors", "failed"),
        (1, "ArithmeticError\n===== ERROR SUMMARY: 0 errors", "failed"),
        (1, "Device not supported", "absent"),
        (127, "compute-sanitizer is not on the PATH", "absent"),
        (None, "", "failed"),
    ],
)
def test_verdict_of_the_memory_check(status, output, expected):
    assert gpu._judge_memory_check(Outcome(status, output)).status == expected


@pytest.mark.parametrize(
    ("status", "output", "expected", "reason"),
    [
        (0, "Built target metamorph_ops", "ok", "built"),
        (1, "METAMORPH_CUDA=1, but nvcc was not found", "absent", "nvcc was not found"),
        (1, "No module named 'setuptools'", "absent", "No module named 'setuptools'"),
        (1, "a.cu(3): error: expected\ngmake: ***\ndid not compile", "failed", "a.cu(3): error"),
        (1, "The CUDA library did not compile", "failed", "did not compile"),
        (None, "", "failed", "out of time"),
    ],
)
def test_verdict_of_the_build(status, output, expected, reason, tmp_path, monkeypatch):
    library = tmp_path / "library.so"
    monkeypatch.setattr(gpu, "LIBRARY", library)
    library.touch()
    result = gpu._judge_build(Outcome(status, output))
    assert result.status == expected and reason in result.reason


def test_a_build_that_leaves_no_library_is_no_build(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LIBRARY", tmp_path / "library.so")
    assert gpu._judge_build(Outcome(0, "running build_ext")).status == "failed"


def test_the_build_is_of_the_project_that_has_the_library():
    step = gpu._build()
    assert "build_extension" in (step.folder / step.command[1]).read_text()


def test_what_no_gpu_has_run_comes_first_and_only_a_gpu_builds_the_library(tmp_path):
    for quick in (True, False):
        names = [step.name for step in gpu.steps("cuda", quick, tmp_path)]
        assert names[:4] == ["Gluon tests", "build", "tests", "CUDA tests"]
        assert names[-1] == "memcheck"
        on_cpu = [step.name for step in gpu.steps("cpu", quick, tmp_path)]
        assert on_cpu[:2] == ["Gluon tests", "tests"]
        assert not {"build", "CUDA tests", "memcheck"} & set(on_cpu)
        assert ("resources" in on_cpu) == (not quick)  # compiling every kernel takes minutes


@pytest.mark.parametrize(("status", "expected"), [(0, "ok"), (1, "failed"), (None, "failed")])
def test_verdict_of_the_resources(status, expected):
    result = gpu._judge_resources(Outcome(status, "kernel registers\n9 configurations: all fit\n"))
    assert result.status == expected
    assert result.reason.endswith("out of time" if status is None else "9 configurations: all fit")


@pytest.mark.parametrize(
    ("name", "device_type", "collected", "left_out"),
    [
        (
            "tests",
            "cpu",
            "test_random_packings_against_float64[0]",
            "test_random_packings_against_float64[1]",
        ),
        (
            "Gluon tests",
            "cpu",
            "test_random_packings_against_float64_and_the_others[0]",
            "test_triton_interval_attention.py",
        ),
        ("CUDA tests", "cuda", "test_on_gpu.py::test_opcheck", "test_setup.py"),
    ],
)
def test_the_tests_are_collected_with_nothing_but_torch_triton_and_pytest(
    tmp_path, name, device_type, collected, left_out
):
    pytest.importorskip("triton")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('hypothesis', 'pytest_timeout', 'pytest_benchmark', 'transformers'):\n"
        "    sys.modules[name] = None\n"
    )
    [step] = [step for step in gpu.steps(device_type, True, tmp_path) if step.name == name]
    paths = [str(tmp_path), str(ROOT), str(ROOT / "kernels")]
    done = subprocess.run(
        [*step.command, "--collect-only"],
        cwd=ROOT,
        env=os.environ | step.environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert collected in done.stdout and left_out not in done.stdout
