"""Ctrl-C, SIGTERM and SIGUSR1 save and exit with 0; a second one ends the process at once."""

import os
import signal
import time
from pathlib import Path

import pytest

from metamorph.cli.command import main
from metamorph.config.reading import save_config
from metamorph.data.lanes import Lanes
from metamorph.signals import StopSignal
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint
from tests.processes import CONTEXT, run_processes
from tests.tiny_run import tiny_config


def stopped_by(config_file: str, *numbers: int) -> int:
    """The exit code of a run in whose second step process 0 gets these signals."""
    next_rows, calls = Lanes.next_rows, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == 2 and os.environ.get("RANK", "0") == "0":
            for number in numbers:
                os.kill(os.getpid(), number)
        return next_rows(self)

    Lanes.next_rows = interrupted
    try:
        return main(["train", config_file])
    finally:
        Lanes.next_rows = next_rows


@pytest.fixture
def config_file(folder) -> str:
    save_config(tiny_config(folder, "instruct", steps=4, rows_per_step=2), folder / "run.yaml")
    return str(folder / "run.yaml")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_exits_with_0(folder, config_file, capsys, name):
    assert stopped_by(config_file, signal.Signals[name]) == 0
    assert "stopped after step 2 of 4; go on with" in capsys.readouterr().err
    assert latest_checkpoint(folder / "instruct").name == "step-000002"
    assert main(["train", config_file, "--resume"]) == 0
    assert latest_checkpoint(folder / "instruct").name == "step-000004"


def test_a_signal_to_one_process_stops_all(folder, config_file):
    assert run_processes(2, stopped_by, config_file, signal.SIGTERM) == [0, 0]
    assert latest_checkpoint(folder / "instruct").name == "step-000002"


def wait_twice_for_ever(started) -> None:
    with StopSignal():
        started.set()
        for _ in range(2):
            time.sleep(60)  # a checkpoint that takes its time


def test_a_second_signal_ends_the_process_at_once():
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=wait_twice_for_ever, args=(started,))
    process.start()
    assert started.wait(60)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        assert process.is_alive()
        os.kill(process.pid, number)
        time.sleep(0.2)
    process.join(2)
    assert process.exitcode == 128 + signal.SIGUSR1


def test_handlers_of_others_come_back():
    before = [signal.getsignal(number) for number in StopSignal.SIGNALS]
    with StopSignal():
        assert [signal.getsignal(number) for number in StopSignal.SIGNALS] != before
    assert [signal.getsignal(number) for number in StopSignal.SIGNALS] == before


def test_a_run_that_fails_still_publishes_the_checkpoint_it_was_writing(folder, monkeypatch):
    config = tiny_config(folder, "instruct", steps=4)
    save_config(config, folder / "run.yaml")
    publish, next_rows, calls = Checkpoints._publish, Lanes.next_rows, []

    def slowly(self, *arguments):
        time.sleep(0.5)
        publish(self, *arguments)

    def fails_in_fourth_step(self):
        calls.append(None)
        if len(calls) == 4:
            raise OSError("the disk of the data is gone")
        return next_rows(self)

    monkeypatch.setattr(Checkpoints, "_publish", slowly)
    monkeypatch.setattr(Lanes, "next_rows", fails_in_fourth_step)
    assert main(["train", str(folder / "run.yaml")]) == 2
    assert latest_checkpoint(Path(config.output)).name == "step-000003"
