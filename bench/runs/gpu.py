"""What gpu.sh runs, each step in a process of its own: build, tests, benchmarks, memory check."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from bench.harness.machine import ROOT, identity, machine
from bench.harness.results import FILE, Result, failed, ours_failed, read_records, write_record
from bench.reports.tables import markdown, text
from bench.runs.entries import entries

QUICK_SECONDS = 450  # of all steps together, so that a quick run ends within eight minutes
LEAST_SECONDS = 20  # with less left, a step is not begun
QUICK_TESTS = "not random or [0]"  # one of the parametrised sets of random shapes
GLUON_TESTS = "tests/kernels/attention/test_triton_gluon.py"
LIBRARY = ROOT / "kernels/metamorph_kernels/metamorph_ops.abi3.so"


@dataclass(frozen=True)
class Outcome:
    """`status` is None where time ran out."""

    status: int | None
    output: str

    @property
    def words(self) -> str:
        if self.status is None:
            return "stopped: out of time"
        return f"exit status {self.status}: {self.last_line}"

    @property
    def last_line(self) -> str:
        lines = self.output.strip().splitlines() or ["no output"]
        return lines[-1].strip()


@dataclass(frozen=True)
class Step:
    """A command with at most `seconds` of time.

    `judge` makes a result of what it did; without one the command writes its record itself, and
    the driver only if it did not live to.
    """

    name: str
    command: list[str]
    seconds: int
    judge: Callable[[Outcome], Result] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT


def steps(device_type: str, quick: bool, out: Path) -> list[Step]:
    """All that is run, in order."""
    on_gpu = device_type == "cuda"
    # What no GPU has run yet comes first; then the library, before all that uses it.
    planned = [_gluon_tests(device_type, quick)]
    if on_gpu:
        planned.append(_build())
    planned.append(_tests(device_type, quick))
    if on_gpu:
        planned.append(_cuda_tests())
    for entry in entries(device_type).values():
        if entry.quick or not quick:
            command = [sys.executable, "-m", "bench.runs.entries", entry.name]
            command += ["--device", device_type, "--out", str(out)]
            planned.append(Step(entry.name, command, seconds=300))
    if on_gpu:
        planned.append(_memory_check())
    elif not quick:
        planned.append(_resources())
    return planned


def run_steps(
    planned: list[Step], device: torch.device, out: Path, seconds: float
) -> dict[str, dict]:
    """The record of every step; those with a record of the same code and device are not run."""
    deadline = time.monotonic() + seconds
    known = identity(device)
    shown = {}
    for step in planned:
        earlier = read_records(out).get(step.name)
        left = deadline - time.monotonic()
        if earlier is not None and known.items() <= earlier["machine"].items():
            print(f"{step.name}: kept from an earlier run", flush=True)
            record = earlier
        elif left < LEAST_SECONDS:
            record = {"machine": machine(device), "results": [_late(step)]}
        else:
            print(f"{step.name} ...", end=" ", flush=True)
            begin = time.monotonic()
            outcome = _execute(step, out, min(step.seconds, left))
            record = read_records(out).get(step.name)
            if record == earlier:  # the step wrote none
                cut = outcome.status is None and left < step.seconds
                result = _late(step) if cut else _result(step, outcome)
                record = {"machine": machine(device), "results": [result]}
                if not cut:
                    write_record(out, step.name, record)
            verdict = "failed" if ours_failed(record["results"]) else "done"
            print(f"{verdict} in {time.monotonic() - begin:.0f} s", flush=True)
        shown[step.name] = record
    return shown


def _late(step: Step) -> Result:
    return failed("not run", "", f"ours {step.name}", "no time left; run again to go on")


def _result(step: Step, outcome: Outcome) -> Result:
    if step.judge is not None:
        return step.judge(outcome)
    return failed("not measured", "", f"ours {step.name}", outcome.words)


def _execute(step: Step, out: Path, seconds: float) -> Outcome:
    """Run a step, keep its output in the log, and leave none of its processes behind."""
    if shutil.which(step.command[0]) is None:
        return Outcome(127, f"{step.command[0]} is not on the PATH")
    process = subprocess.Popen(
        step.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=step.folder,
        env=os.environ | step.environment,
        process_group=0,
    )
    status = None
    try:
        output, _ = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    finally:
        if process.poll() is None:  # this process is being ended itself
            os.killpg(process.pid, signal.SIGKILL)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("a") as log:
        log.write(f"== {step.name}, exit status {status}\n{output}\n")
    return Outcome(status, output)


def _build() -> Step:
    """The CUDA library, beside its Python functions."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    folder = ROOT / "kernels"
    alone = {"METAMORPH_CUDA": "1", "METAMORPH_CPU": "0"}
    return Step("build", command, 180, _judge_build, alone, folder)


def _judge_build(outcome: Outcome) -> Result:
    line = ("checks", "", "ours CUDA library")
    if outcome.status == 0 and LIBRARY.exists():
        return Result(*line, "ok", "built")
    if outcome.status == 0:
        return failed(*line, f"{LIBRARY.name} was not written")
    if outcome.status is not None and "did not compile" not in outcome.output:
        return Result(*line, "absent", f"cannot be built here, {outcome.words}")
    error = re.search(r"^.*\berror\b.*$", outcome.output, re.MULTILINE | re.IGNORECASE)
    return failed(*line, error[0].strip() if error else outcome.words)


def _resources() -> Step:
    """The table of every kernel's registers and shared memory, which goes to the log."""
    command = [sys.executable, "-m", "metamorph_kernels.aot"]
    return Step("resources", command, 900, _judge_resources)


def _judge_resources(outcome: Outcome) -> Result:
    line = ("checks", "", "ours resources")
    if outcome.status == 0:
        return Result(*line, "ok", outcome.last_line)
    return failed(*line, outcome.words)


def _gluon_tests(device_type: str, quick: bool) -> Step:
    """Of the kernels in Gluon, beside PyTorch, Triton and float64."""
    return _kernel_tests("Gluon tests", [GLUON_TESTS], device_type, quick)


def _tests(device_type: str, quick: bool) -> Step:
    """Of the Triton kernels."""
    paths = ROOT.glob("tests/kernels/*/test_triton_*")
    files = sorted({str(path.relative_to(ROOT)) for path in paths} - {GLUON_TESTS})
    return _kernel_tests("tests", files, device_type, quick)


def _kernel_tests(name: str, files: list[str], device_type: str, quick: bool) -> Step:
    environment = {"TRITON_INTERPRET": "1"} if device_type == "cpu" else {}
    chosen = ["-k", QUICK_TESTS] if quick else []
    seconds = 200 if quick else 900
    return _pytest(name, "tests/kernels", files + chosen, seconds, environment)


def _cuda_tests() -> Step:
    """Of the CUDA library, which skip themselves where it is absent."""
    return _pytest("CUDA tests", "tests/csrc", ["tests/csrc/test_on_gpu.py"], 200, {})


def _pytest(
    name: str, folder: str, arguments: list[str], seconds: int, environment: dict[str, str]
) -> Step:
    """Nothing of pytest that asks for a package beside it."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += ["--confcutdir", folder, "-p", "no:cacheprovider", *arguments]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment
    return Step(name, command, seconds, partial(_judge_tests, f"ours {name}"), environment)


def _judge_tests(name: str, outcome: Outcome) -> Result:
    line = ("checks", "", name)
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|errors?)\b", outcome.output))
    if outcome.status == 0:
        return Result(*line, "ok" if "passed" in counts else "absent", counts)
    names = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", outcome.output, re.MULTILINE)
    return failed(*line, "; ".join(filter(None, (counts, " ".join(names)))) or outcome.words)


def _memory_check() -> Step:
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]
    command += [sys.executable, "-m", "bench.ops.odd_shapes"]
    # An allocation each, or PyTorch's cache would hide a step over the end of a tensor.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step("memcheck", command, 90, _judge_memory_check, environment)


def _judge_memory_check(outcome: Outcome) -> Result:
    line = ("checks", "", "ours memcheck")
    count = re.search(r"ERROR SUMMARY: (\d+) error", outcome.output)
    if count is None and outcome.status is not None:
        return Result(*line, "absent", f"does not run here, {outcome.words}")
    if count is None or outcome.status != 0:
        return failed(*line, f"{count[1]} errors" if count else outcome.words)
    return Result(*line, "ok", "0 errors on odd shapes")


def main(arguments: list[str] | None = None) -> int:
    """Run all steps and print their summary; 1 if anything of ours failed."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu.sh",
        description="Tests the GPU kernels, then benchmarks them. What is in the folder of results "
        "from the same code, device and versions is kept, so that a second call goes on where the "
        "first one stopped.",
    )
    parser.add_argument("--quick", action="store_true", help="the main sizes, within 8 minutes")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses everything"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu rehearses without one")
    out = Path(os.environ.get("OUT", "bench/out"))
    if options.fresh:
        (out / FILE).unlink(missing_ok=True)
    device = torch.device(options.device)
    planned = steps(options.device, options.quick, out)
    shown = run_steps(planned, device, out, QUICK_SECONDS if options.quick else float("inf"))
    (out / "summary.md").write_text(markdown(shown))
    print(f"\n{text(shown)}")
    return int(any(ours_failed(record["results"]) for record in shown.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
