"""Checkpoints that are whole or absent, and exact: weights, optimizer, position in the data.

A checkpoint is written in the background under a temporary name, by all processes, and renamed when
complete. A folder counts as one only with its marker, which is written last. It can be resumed by
any number of processes.

.metadata, *.distcp   trained parameters and optimizer, as torch.distributed.checkpoint writes them
state.json            what else the run must know
complete.json         the marker: the step, and the size of every file
"""

import json
import os
import pickle
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from metamorph.errors import UserError
from metamorph.processes import is_first, wait_for_all
from metamorph.training.checkpoint_tensors import (
    SafeReader,
    init_optimizer,
    random_states,
    set_random_states,
    trained_tensors,
)

MARKER = "complete.json"
# A run of one process is no mistake, whatever torch thinks of it at every checkpoint.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step below `folder/checkpoints`."""
    found = _by_step(folder / "checkpoints")
    return found[-1] if found else None


def _by_step(parent: Path) -> list[Path]:
    found = [path for path in parent.glob("step-[0-9]*") if (path / MARKER).exists()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


class Checkpoints:
    """Writes `folder/checkpoints/step-NNNNNN`, one at a time, and keeps the newest `keep`.

    All processes call all methods. What a crash left half written is removed at the start.
    """

    def __init__(self, folder: Path, keep: int):
        self.parent, self.keep = folder / "checkpoints", keep
        self.pending: Future | None = None
        # A group of its own: the background must not mix its messages with those of the steps.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        if is_first():
            self.parent.mkdir(parents=True, exist_ok=True)
            for left in self.parent.glob(".step-*.incomplete"):
                shutil.rmtree(left)
        wait_for_all()

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict
    ) -> None:
        """Copies what is to be saved to host memory and returns while it is written.

        `module`: its parameters that are trained are saved. `state`: JSON-able, the same in
        every process; it comes back as is. Raises what went wrong with the one before.
        """
        self.wait()
        temporary = self.parent / f".step-{step:06d}.incomplete"
        tensors = trained_tensors(module, optimizer) | random_states()
        text = json.dumps({"step": step, **_optimizer_numbers(optimizer), **state}, indent=1)
        # pyrefly: ignore[bad-assignment]  anything else than a Future has to be asked for
        written: Future = dcp.async_save(
            tensors,
            storage_writer=dcp.FileSystemWriter(temporary),
            process_group=self.group,  # pyrefly: ignore[bad-argument-type]  all are in it: no int
            no_dist=self.group is None,
        )
        published: Future = Future()
        self.pending = published

        def publish(done: Future) -> None:  # in the background
            try:
                done.result()  # every process has written its part
                if is_first():
                    self._publish(temporary, step, text)
                published.set_result(None)
            except BaseException as error:  # whoever waits for it shall know
                published.set_exception(error)

        written.add_done_callback(publish)

    def _publish(self, temporary: Path, step: int, text: str) -> None:
        _write(temporary / "state.json", text)
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        _fsync(temporary)
        _write(temporary / MARKER, json.dumps({"step": step, "sizes": sizes}, indent=1))
        _fsync(temporary)
        final = self.parent / f"step-{step:06d}"
        shutil.rmtree(final, ignore_errors=True)  # without its marker, or of a run done again
        temporary.rename(final)
        _fsync(self.parent)
        for old in _by_step(self.parent)[: -self.keep]:
            (old / MARKER).unlink()  # first: a crash must not leave half of it marked
            shutil.rmtree(old)

    def wait(self) -> None:
        """Returns once nothing is being written any more. Raises what went wrong with it."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.wait()


def _optimizer_numbers(optimizer: torch.optim.Optimizer) -> dict:
    """What some optimizers count once for a group, not for each parameter."""
    return {"optimizer_steps": [group.get("step") for group in optimizer.param_groups]}


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restores parameters, optimizer and random numbers in place; returns the saved `state`
    with `step`. Every process reads its own part.

    Raises `UserError` if the checkpoint is damaged, or belongs to a model of another shape or
    another stage; parameters and optimizer are then as before, unless the damage left all sizes.
    """
    reader = SafeReader(path)
    try:
        marker = json.loads((path / MARKER).read_text())
        for name, size in marker["sizes"].items():
            found = (path / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes, not {size}")
        saved = reader.read_metadata().state_dict_metadata
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error
    _check_fits(path, saved, module)
    init_optimizer(optimizer)
    tensors = trained_tensors(module, optimizer) | random_states(saved)
    differing = sorted(key for key in tensors if key not in saved)
    if differing:
        raise UserError(f"checkpoint {path} does not fit: it does not hold {differing[0]}")
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise _damaged(path, first) from error
    set_random_states(tensors)
    for group, step in zip(optimizer.param_groups, state["optimizer_steps"], strict=True):
        if step is not None:
            group["step"] = step
    return state


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(
        f"checkpoint {path} is damaged ({error}); remove it to go on from the one before"
    )


def _check_fits(path: Path, saved: dict, module: nn.Module) -> None:
    parameters: dict[str, Tensor] = {
        f"model.{n}": p for n, p in module.named_parameters() if p.requires_grad
    }
    trained = {name for name in saved if name.startswith("model.")}
    differing = sorted(trained ^ parameters.keys())
    if differing:
        raise UserError(
            f"checkpoint {path} does not fit: {len(differing)} parameters are trained in only one "
            f"of the two, the first is {differing[0].removeprefix('model.')}"
        )
    for name, parameter in parameters.items():
        if saved[name].size != parameter.shape:
            raise UserError(
                f"checkpoint {path}: {name.removeprefix('model.')} has shape "
                f"{tuple(saved[name].size)}, the model needs {tuple(parameter.shape)}"
            )
