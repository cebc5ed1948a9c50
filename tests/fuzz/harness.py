"""Attacks one reader with many broken inputs, in a child process with a deadline for each of them.

An attack is a function `attack(random, folder)` at the top of a module: it breaks one of the sound
inputs in `folder`, reads it as the project would, and returns what became of it in one word. What a
user may be told is a `UserError` or a `SampleError`: one line of bounded length, in words. Anything
else (another exception, a process that dies, one that takes longer than `SECONDS` or more memory
than `MEMORY`) fails and names the seed, which alone decides the input:

    FUZZ_ROUNDS=100 FUZZ_SEED=1000 python -m pytest tests/fuzz/test_fuzz_tars.py
"""

import io
import os
import random
import re
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from metamorph.cli.command import main
from metamorph.errors import SampleError, UserError
from tests.processes import CONTEXT

SECONDS = 5.0  # of a processor, for one input
PATIENCE = 60.0  # seconds of a clock, which run on while other processes have the processors
MEMORY = 1.5 * 2**30  # bytes of the child, all imports included
LONGEST_MESSAGE = 1500  # characters
FIRST_SEED = int(os.environ.get("FUZZ_SEED", "0"))
ROUNDS = float(os.environ.get("FUZZ_ROUNDS", "1"))  # times the cases that a test asks for
MOST_FAILURES = 8  # after which a hunt ends
BATCH = 200  # cases of one child, so that what one leaves behind is not kept for ever

# What Python says to programmers, which no message may say to a user.
OBSCURE = re.compile(
    r"(Key|Type|Attribute|Index|Overflow|Recursion|Assertion|NotImplemented|Runtime|Unicode\w+)Error"
    r"|JSONDecodeError|NoneType|has no attribute|object is not|Traceback|at 0x[0-9a-f]{9,}"
)

Attack = Callable[[random.Random, Path], str]


@dataclass
class Report:
    """What became of the cases of one target."""

    target: str
    first_seed: int
    outcomes: Counter = field(default_factory=Counter)
    seconds: float = 0.0  # of a processor, all cases together
    slowest: float = 0.0  # the same of one case
    memory: int = 0  # bytes, the most of any child

    def text(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        last = self.first_seed + self.outcomes.total() - 1
        return (
            f"{self.target}: seeds {self.first_seed} to {last}: {counts}; "
            f"{self.seconds:.0f} s, slowest {self.slowest:.2f} s, {self.memory / 2**20:.0f} MiB"
        )


def hunt(target: str, attack: Attack, folder: Path, cases: int) -> Report:
    """Runs `attack` for as many seeds. Raises `AssertionError` with the first that fail."""
    report, failures = Report(target, FIRST_SEED), []
    seed, end = FIRST_SEED, FIRST_SEED + max(round(cases * ROUNDS), 1)
    while seed < end and len(failures) < MOST_FAILURES:
        seed = _hunt_batch(report, attack, folder, range(seed, min(seed + BATCH, end)), failures)
    again = f"FUZZ_ROUNDS=0 FUZZ_SEED=SEED python -m pytest '{target}'"
    assert not failures, "\n".join([*failures, f"again: {again}"])
    # Whoever refuses everything reads nothing: broken files would never be looked into.
    assert cases * ROUNDS < 100 or set(report.outcomes) != {"refused"}, f"{target}: all refused"
    return report


def _hunt_batch(
    report: Report, attack: Attack, folder: Path, seeds: range, failures: list[str]
) -> int:
    """Goes through `seeds` as far as one child comes. Returns the seed to go on with."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_attack_all, args=(attack, folder, report.target, seeds, sender))
    child.start()
    sender.close()
    try:
        receiver.recv()  # it has started
        for seed in seeds:
            if hung := _wait(receiver, child.pid):
                failures.append(f"seed {seed}: {hung}")
                return seed + 1
            try:
                outcome, seconds, memory = receiver.recv()
            except EOFError:
                child.join(SECONDS)
                failures.append(f"seed {seed}: the process died with {child.exitcode}")
                return seed + 1
            report.outcomes[outcome.splitlines()[0]] += 1
            report.seconds += seconds
            report.slowest = max(report.slowest, seconds)
            report.memory = max(report.memory, memory)
            if outcome.startswith("FAILED"):
                failures.append(f"seed {seed}: {outcome}")
                if len(failures) == MOST_FAILURES:
                    return seed + 1
            if memory > MEMORY:
                failures.append(f"seed {seed}: {memory / 2**20:.0f} MiB")
                return seed + 1
        return seeds.stop
    finally:
        child.kill()
        child.join()


def _wait(receiver: Connection, pid: int) -> str:
    """Waits for what a child has to say; returns why not for ever, if it says nothing."""
    cpu, clock = _cpu_seconds(pid), time.monotonic()
    while not receiver.poll(SECONDS / 5):
        if _cpu_seconds(pid) - cpu > SECONDS:
            return f"longer than {SECONDS} s"
        if time.monotonic() - clock > PATIENCE:
            return f"silent for {PATIENCE} s"
    return ""


def _cpu_seconds(pid: int) -> float:
    """Processor time that a process has had; 0 of one that has ended: it may have said its last
    words before anybody listened, and the server that forked it leaves no trace of it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _attack_all(attack: Attack, folder: Path, target: str, seeds: range, sender) -> None:
    torch.set_num_threads(1)
    sender.send("started")
    for seed in seeds:
        start = time.process_time()
        outcome = _outcome(attack, random.Random(f"{target} {seed}"), folder)
        seconds = time.process_time() - start
        sender.send((outcome, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def _outcome(attack: Attack, chance: random.Random, folder: Path) -> str:
    try:
        return attack(chance, folder)
    except (UserError, SampleError) as error:
        return judge(str(error), getattr(error, "cause", ""))
    except BaseException:
        return f"FAILED\n{traceback.format_exc()}"


def run_cli(*arguments: str, fine: tuple[int, ...] = (0,)) -> str:
    """What became of a command: it did its work, or said in one line why not. `fine`: exit codes
    of work that was done."""
    said, shown = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(shown):
        try:
            code = main(list(arguments))
        except SystemExit as error:  # of argparse
            code = error.code
    if code in fine:
        return "done"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("metamorph")]
    if code != 2 or len(lines) != 1:
        return f"FAILED: exit code {code}, said {said.getvalue()[-3000:]!r}"
    return judge(lines[0])


def judge(message: str, cause: str = "") -> str:
    """What became of an input that was refused with this message."""
    if "\n" in message or len(message) > LONGEST_MESSAGE:
        return f"FAILED: not one line of bounded length: {message[:3000]!r}"
    if found := OBSCURE.search(f"{cause} {message}"):
        return f"FAILED: {found[0]!r} is no word for a user: {message!r}"
    return "refused"
