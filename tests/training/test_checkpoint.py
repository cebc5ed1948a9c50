"""Checkpoints are whole or absent, whatever moment a process dies at, and hold what was saved."""

import hashlib
import json
import os
import pickle
import random
import signal
import threading
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from metamorph.errors import UserError
from metamorph.training.checkpoint import Checkpoints, latest_checkpoint, load_checkpoint
from tests.processes import CONTEXT, run_processes


def trained(value: float = 0.0) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A module whose weights all are `value`, and an optimizer that has made a step."""
    module = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module, optimizer


def save_for_ever(folder, published) -> None:
    """Saves steps 1, 2, ..., whose weights are the step, and says which are complete."""
    checkpoints = Checkpoints(folder, keep=2)
    step = 1 + (int(latest_checkpoint(folder).name[5:]) if latest_checkpoint(folder) else 0)
    while True:
        checkpoints.save(step, *trained(step), {"note": step})
        checkpoints.wait()
        published.value = step
        step += 1


@pytest.mark.slow
def test_a_process_killed_at_any_moment_never_loses_the_last_checkpoint(tmp_path):
    moments = random.Random(0)
    published = CONTEXT.Value("i", 0)
    killed = killed_amid_a_save = 0
    while killed < 20 or killed_amid_a_save < 5:  # else the moments say little
        before = published.value
        process = CONTEXT.Process(target=save_for_ever, args=(tmp_path, published))
        process.start()
        while published.value == before:  # until it saves: starting up is no moment of saving
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        killed_amid_a_save += any((tmp_path / "checkpoints").glob(".*.incomplete"))
        path = latest_checkpoint(tmp_path)
        module, optimizer = trained()
        state = load_checkpoint(path, module, optimizer)
        assert state["step"] == state["note"] >= published.value
        assert all((parameter == state["step"]).all() for parameter in module.parameters())
        assert (optimizer.state[module.bias]["exp_avg"] > 0).all()


def test_what_training_does_while_a_checkpoint_is_written_is_not_in_it(tmp_path, monkeypatch):
    write, trained_on = dcp.FileSystemWriter.write_data, threading.Event()

    def afterwards(self, *arguments):
        assert trained_on.wait(60)
        return write(self, *arguments)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", afterwards)
    module, optimizer = trained(1.0)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, module, optimizer, {})  # returns while nothing is written yet
    assert latest_checkpoint(tmp_path) is None
    moments = optimizer.state[module.weight]["exp_avg"].clone()
    with torch.no_grad():
        module.weight.fill_(9.0)
        optimizer.state[module.weight]["exp_avg"].fill_(9.0)
    trained_on.set()
    checkpoints.wait()
    other, other_optimizer = trained()
    load_checkpoint(latest_checkpoint(tmp_path), other, other_optimizer)
    assert (other.weight == 1.0).all()
    assert torch.equal(other_optimizer.state[other.weight]["exp_avg"], moments)


def test_the_newest_are_kept_and_what_a_crash_left_is_removed(tmp_path):
    (tmp_path / "checkpoints" / ".step-000009.incomplete").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, *trained(), {})
    checkpoints.wait()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000002", "step-000003"]


def test_a_full_disk_is_known_at_the_next_save_at_the_latest(tmp_path, monkeypatch):
    def full(self, *arguments):
        raise OSError("No space left on device")

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, *trained(), {})
    checkpoints.wait()
    monkeypatch.setattr(Checkpoints, "_publish", full)
    checkpoints.save(2, *trained(), {})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(3, *trained(), {})
    assert latest_checkpoint(tmp_path).name == "step-000001"


def test_random_numbers_go_on_where_they_were(tmp_path):
    module, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, keep=1)
    torch.manual_seed(5)
    checkpoints.save(1, module, optimizer, {})
    checkpoints.wait()
    expected = torch.rand(3)
    load_checkpoint(latest_checkpoint(tmp_path), module, optimizer)
    assert torch.equal(torch.rand(3), expected)


def test_metadata_that_would_run_something_is_refused(tmp_path):
    """The metadata of torch.distributed.checkpoint is a pickle, which can name any function."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, *trained(), {})
    checkpoints.wait()
    path = latest_checkpoint(tmp_path)
    content = pickle.dumps(Evil())
    (path / ".metadata").write_bytes(content)
    marker = json.loads((path / "complete.json").read_text())
    marker["sizes"][".metadata"] = len(content)
    marker["sha256"][".metadata"] = [hashlib.sha256(content).hexdigest()]
    (path / "complete.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="is damaged: .*names posix.mkdir"):
        load_checkpoint(path, *trained())
    assert not (tmp_path / "evil").exists()


def save_by_two(folder):
    from metamorph.processes import process_group

    with process_group(torch.device("cpu")):
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save(1, *trained(1.0), {})
        checkpoints.wait()


def test_processes_write_one_checkpoint_together(tmp_path):
    run_processes(2, save_by_two, tmp_path)
    module, optimizer = trained()
    assert load_checkpoint(latest_checkpoint(tmp_path), module, optimizer)["step"] == 1
    assert (module.weight == 1.0).all()
