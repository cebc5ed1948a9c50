"""Runs that are killed or stopped at random moments, and go on, end as one that was left alone, bit
for bit: the model, the last checkpoint (weights, optimizer, random numbers, place in the data) and
the log. The figures of docs/reliability.md."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from metamorph.cli.command import main
from metamorph.config.reading import save_config
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.checkpoint import latest_checkpoint
from metamorph.training.loop import Run
from tests.processes import CONTEXT
from tests.tiny_run import tiny_config

SEED = 0
STEPS = 4
KILLS, STOPS = 20, 10
IN_LAST_SAVE = 0.4  # share of the moments that come after the last step
LONGEST_DELAY = 0.12  # seconds from the end of a step, or from the last one: a save takes less


def run(config_file: str, option: str, done) -> None:
    """A run in a process of its own; `done`: how many steps are over."""
    record = Run.record

    def counted(self, *arguments):
        done.value += 1
        record(self, *arguments)

    Run.record = counted
    torch.set_num_threads(1)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["train", config_file, option])
    if code:
        print(said.getvalue(), flush=True)
    os._exit(code)  # what the server of forks would wait for is nothing of ours


def start(config_file: str, option: str):
    done = CONTEXT.Value("i", 0)
    process = CONTEXT.Process(target=run, args=(config_file, option, done))
    process.start()
    return process, done


def finish(config_file: str, folder: Path) -> None:
    """What a person, or Slurm, would do about a run that has ended too early."""
    process, _ = start(config_file, "--resume" if latest_checkpoint(folder) else "--overwrite")
    process.join()
    assert process.exitcode == 0


def interrupt(config_file: str, moments: random.Random, number: int) -> int | None:
    """Sends a signal to a run at a random moment; returns its exit code, None if it was over."""
    last = moments.random() < IN_LAST_SAVE
    step = STEPS if last else moments.randint(0, STEPS - 1)
    delay = moments.uniform(0, LONGEST_DELAY)
    process, done = start(config_file, "--overwrite")
    while done.value < step:
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(delay)
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        process.join()
        return None
    process.join()
    return process.exitcode


def outcome(folder: Path) -> dict:
    """All that a run leaves, but for times and speeds."""
    marker = json.loads((folder / f"checkpoints/step-{STEPS:06d}/complete.json").read_text())
    state = json.loads((folder / f"checkpoints/step-{STEPS:06d}/state.json").read_text())
    names = ("step", "text_loss", "visual_cosine", "gradient_norm", "learning_rate", "skipped")
    return {
        "model": (folder / "model/model.safetensors").read_bytes(),
        "tensors": {k: v for k, v in marker["sha256"].items() if k.endswith(".distcp")},
        "state": state,
        "log": [[line.get(name) for name in names] for line in read_metrics(folder)],
        "left": sorted(path.name for path in folder.rglob("*") if path.name.startswith(".")),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, KILLS), (signal.SIGTERM, STOPS)])
def test_interrupted_runs_end_as_one_that_was_left_alone(folder, number, times):
    config = tiny_config(folder, "instruct", steps=STEPS)
    config.training.checkpoint_every = 1
    save_config(config, folder / "run.yaml")
    config_file, output = str(folder / "run.yaml"), Path(config.output)
    finish(config_file, output)
    expected = outcome(output)
    print(f"seed {SEED}")
    moments, interrupted, in_a_save = random.Random(SEED), 0, 0
    while interrupted < times or (
        number == signal.SIGKILL and in_a_save < 3
    ):  # else it says little
        code = interrupt(config_file, moments, number)
        if number == signal.SIGTERM:
            assert code in (0, -signal.SIGTERM, None)  # the second before its first step
            interrupted += code is not None
        elif code == -signal.SIGKILL:  # else it was over before
            interrupted += 1
        half_written = [*output.rglob(".step-*.incomplete"), *output.rglob(".*.tmp")]
        in_a_save += bool(half_written)
        finish(config_file, output)
        assert outcome(output) == expected
        shutil.rmtree(output)
    print(f"{number.name}: {interrupted} times, {in_a_save} left a half-written save; all the same")
