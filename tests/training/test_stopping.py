"""Ctrl-C, SIGTERM and SIGUSR1 save and exit with 0; a second one ends the process at once, and so
does the death of another process."""

import contextlib
import io
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from metamorph import signals
from metamorph.cli.command import main
from metamorph.config.reading import save_config
from metamorph.data.lanes import Lanes
from metamorph.lock import locked
from metamorph.model.unified import MetaMorph
from metamorph.signals import StopSignal
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint
from tests.processes import CONTEXT, run_processes
from tests.tiny_run import tiny_config

MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29512"}


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


def save_for_ever(echo_seconds: float, started) -> None:
    signals.ECHO_SECONDS = echo_seconds
    with StopSignal() as stop:
        started.set()
        for _ in range(9):
            time.sleep(60)  # a checkpoint that takes its time
            assert stop.requested


@pytest.mark.parametrize(
    ("numbers", "echo_seconds", "last"),
    [
        ((signal.SIGTERM, signal.SIGUSR1), 60.0, signal.SIGUSR1),
        ((signal.SIGTERM, signal.SIGTERM), 0.1, signal.SIGTERM),
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, signal.SIGINT), 60.0, signal.SIGINT),
    ],
)
def test_another_signal_ends_the_process_at_once_but_not_an_echo(numbers, echo_seconds, last):
    """Slurm and torchrun may each deliver the same one, within a moment."""
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=save_for_ever, args=(echo_seconds, started))
    process.start()
    assert started.wait(60)
    for number in numbers:
        assert process.is_alive()
        os.kill(process.pid, number)
        time.sleep(0.15)
    process.join(2)
    assert process.exitcode == 128 + last


def test_a_run_that_is_ended_says_so_in_a_line(capfd, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: None)
    with StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # an echo
        os.kill(os.getpid(), signal.SIGUSR1)
    line = "metamorph: ended at once by a second signal, SIGUSR1"
    assert capfd.readouterr().err.split("\n") == ["", line, ""]


@pytest.mark.parametrize("moment", [(Checkpoints, "wait"), (MetaMorph, "save_pretrained")])
def test_a_signal_during_the_last_save_loses_nothing(folder, config_file, monkeypatch, moment):
    """Slurm's limit comes when it comes: the run is over, and its model goes to the disk."""
    honest, steps = getattr(*moment), []

    def interrupted(self, *arguments):
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, *arguments)

    next_rows = Lanes.next_rows
    monkeypatch.setattr(Lanes, "next_rows", lambda self: steps.append(None) or next_rows(self))
    monkeypatch.setattr(*moment, interrupted)
    assert main(["train", config_file]) == 0
    assert latest_checkpoint(folder / "instruct").name == "step-000004"
    MetaMorph.from_pretrained(folder / "instruct" / "model")


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


def last_words(arguments: list[str], dies_in_step: int = 0) -> tuple[int, str]:
    """Exit code and last line of a run whose process 1 is killed in that step."""
    next_rows, calls = Lanes.next_rows, []

    def killed(self):
        calls.append(None)
        if len(calls) == dies_in_step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return next_rows(self)

    Lanes.next_rows = killed
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        code = main(["train", *arguments])
    lines = shown.getvalue().strip().split("\n")
    assert not any("Traceback" in line for line in lines)
    return code, lines[-1]


def test_a_killed_process_ends_the_others_in_a_line(folder, config_file):
    options = [config_file, "--training.checkpoint_every", "1"]
    [(code, line)] = run_processes(2, last_words, options, 4, dying=1)
    assert code == 1
    assert line.startswith("metamorph: another process of this run has died, so this one ends too")
    assert latest_checkpoint(folder / "instruct").name in ("step-000002", "step-000003")


def with_own_options(config_file: str, *options: list[str]) -> tuple[int, str]:
    return last_words([config_file, *options[int(os.environ["RANK"])]])


@pytest.mark.parametrize(
    ("option", "differs"),
    [
        (["--training.steps", "5"], "training.steps is 4 in process 0 and 5 in 1"),
        (["--training.log_every", "3"], "training.log_every is 1 in process 0 and 3 in 1"),
        (["--training.rows_per_step", "4"], "training.rows_per_step is 2 in process 0 and 4 in 1"),
        (["--training.learning_rate", "0.5", "--seed", "3"], "seed is 0 .*; training.learning_rat"),
        (["--resume"], "resume is False in process 0 and True in 1"),
    ],
)
def test_processes_of_other_configurations_are_refused(config_file, option, differs):
    found = run_processes(2, with_own_options, config_file, [], option)
    assert [code for code, _ in found] == [2, 2]
    assert found[0] == found[1] and re.search(f"expected the same in all: {differs}", found[0][1])


def test_what_changes_nothing_may_differ(config_file):
    options = ["--device", "auto"], ["--device", "cpu"]
    assert [code for code, _ in run_processes(2, with_own_options, config_file, *options)] == [0, 0]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT not set"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"},
            "WORLD_SIZE is 2, but MASTER_ADDR not set",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number at least 1"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', expected"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', expected"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '99"),
        ({"RANK": "1"}, "RANK is 1 but WORLD_SIZE is not set"),
        ({"RANK": "first"}, "RANK is 'first', expected a whole number at least 0"),
        ({"WORLD_SIZE": "2", "RANK": "2", **MASTER}, "RANK is '2', expected .* from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1", **MASTER}, "LOCAL_RANK is '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "0", **MASTER, "MASTER_PORT": "70000"}, "MASTER_PORT is '700"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_half_an_environment_of_torchrun_is_a_sentence(
    config_file, capsys, monkeypatch, variables, message, options
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", config_file, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(f"^metamorph: {message}", error)


def test_processes_that_do_not_find_each_other_say_where(config_file, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {"WORLD_SIZE": "2", "RANK": "0", **MASTER, "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert main(["train", config_file]) == 2
    error = capsys.readouterr().err
    assert f"do not find each other at localhost:{port}: " in error and error.count("\n") == 1


def test_a_second_run_in_the_same_folder_is_refused_in_a_line(folder, config_file, monkeypatch):
    """Whatever it asks for; the first one goes on, and its folder is free when it ends."""
    refusals, next_rows = [], Lanes.next_rows

    def begin_another(self):
        if not refusals:
            monkeypatch.setattr(Lanes, "next_rows", next_rows)
            for options in ([], ["--resume"], ["--overwrite"]):
                with contextlib.redirect_stderr(io.StringIO()) as shown:
                    refusals.append((main(["train", config_file, *options]), shown.getvalue()))
        return next_rows(self)

    monkeypatch.setattr(Lanes, "next_rows", begin_another)
    assert main(["train", config_file]) == 0
    assert [code for code, _ in refusals] == [2, 2, 2]
    for _, line in refusals:
        assert line.count("\n") == 1 and "instruct is in use by process" in line
    assert not (folder / "instruct" / "run.lock").exists()
    assert main(["train", config_file, "--overwrite"]) == 0


def test_all_processes_of_a_second_run_are_refused(folder, config_file):
    (folder / "instruct").mkdir()
    with locked(folder / "instruct"):
        found = run_processes(2, last_words, [config_file])
    assert found[0] == found[1] and found[0][0] == 2 and "is in use by process" in found[0][1]


def test_a_run_that_is_refused_leaves_no_folder(folder, config_file, capsys):
    assert main(["train", config_file, "--model.language", "nowhere"]) == 2
    assert not (folder / "instruct").exists()
    (folder / "instruct").mkdir()
    assert main(["train", config_file, "--model.language", "nowhere"]) == 2
    assert not list((folder / "instruct").iterdir())
