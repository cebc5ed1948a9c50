"""Peak memory of the text loss on a CPU: a process for each provider, whose peak never goes down.

From /proc and not from getrusage: its maximum begins at what the parent process had.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.harness.machine import ROOT
from bench.harness.providers import Compute, Provider
from bench.harness.results import Result, failed
from bench.harness.trials import forward_and_backward
from bench.ops import text_loss

AT_ONCE = 2  # processes: nothing is timed there, and most of it is importing torch
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))


@dataclass(frozen=True)
class Case:
    """A text loss in float32, with the peak of who computes it."""

    loss: text_loss.Case
    quick: bool = False

    @property
    def name(self) -> str:
        return f"memory-{self.loss.name}"

    def run(self, device: torch.device) -> list[Result]:
        """Verify and time in this process, then measure each provider in its own."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._with_peak, self.loss.run(device)))

    def _with_peak(self, line: Result) -> Result:
        if line.timing is None:
            return line
        case = self.loss
        sizes = (case.tokens, case.supervised, case.width, case.vocabulary)
        command = [sys.executable, "-m", "bench.runs.memory", line.provider, *map(str, sizes)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": PATHS},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            reason = f"no peak: {done.stderr.strip().splitlines()[-1:]}"
            return failed(line.operation, line.case, line.provider, reason)
        return replace(line, timing=replace(line.timing, peak_gigabytes=int(done.stdout) / 1e9))


def cases(device_type: str) -> list[Case]:
    """Of a CPU alone; on a GPU every entry has its peak."""
    if device_type != "cpu":
        return []
    return [Case(text_loss.Case(256, 64, width=32, vocabulary=32_002, dtype=torch.float32))]


def peak_bytes(provider: Provider[Compute], case: text_loss.Case) -> int:
    """The most that forward and backward hold beyond what was there; gradients count."""
    device = torch.device("cpu")
    # What a first call allocates for good is no part of it.
    small = replace(case, tokens=8, supervised=2, vocabulary=64)
    forward_and_backward(provider.method, small.inputs(device, seed=0))
    inputs = case.inputs(device, seed=0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _peak()
    forward_and_backward(provider.method, inputs)
    return _peak() - before


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def main(name: str, *sizes: str) -> None:
    [provider] = [provider for provider in text_loss.PROVIDERS if provider.name == name]
    tokens, supervised, width, vocabulary = map(int, sizes)
    case = text_loss.Case(tokens, supervised, width, vocabulary, torch.float32)
    print(peak_bytes(provider, case))


if __name__ == "__main__":
    main(*sys.argv[1:])
