"""Checkpoints that are whole or absent, and exact: weights, optimizer, position in the data.

A checkpoint is written under a temporary name and renamed when complete, so any folder named
``step-*`` can be resumed from.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from metamorph.errors import UserError


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step below ``folder/checkpoints``."""
    found = _by_step(folder / "checkpoints")
    return found[-1] if found else None


def _by_step(parent: Path) -> list[Path]:
    found = parent.glob("step-[0-9]*")
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _trained_tensors(module: nn.Module) -> dict:
    named = module.named_parameters()
    return {name: p.detach().contiguous() for name, p in named if p.requires_grad}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def save_checkpoint(
    folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict,
    keep: int,
) -> None:  # fmt: skip
    """Writes ``folder/checkpoints/step-NNNNNN`` and removes all but the newest ``keep``.

    ``module``: its parameters that are trained are saved. ``state``: JSON-able, comes back as is.
    """
    parent = folder / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"step-{step:06d}"
    temporary = parent / f".step-{step:06d}.incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(_trained_tensors(module), temporary / "model.safetensors")
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for path in temporary.iterdir():
        _fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _fsync(parent)
    for old in _by_step(parent)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restores parameters and optimizer in place and returns the saved ``state`` with ``step``.

    Raises ``UserError`` if the checkpoint is damaged, or belongs to a model of another shape or
    another stage; parameters and optimizer are then as before.
    """
    try:
        saved = load_file(path / "model.safetensors")
        moments = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        state = json.loads((path / "state.json").read_text())
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}); remove it to go on from the one before"
        ) from error
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    differing = sorted(saved.keys() ^ parameters.keys())
    if differing:
        raise UserError(
            f"checkpoint {path} does not fit: {len(differing)} parameters are trained in only one "
            f"of the two, the first is {differing[0]}"
        )
    for name, parameter in parameters.items():
        if saved[name].shape != parameter.shape:
            raise UserError(
                f"checkpoint {path}: {name} has shape {tuple(saved[name].shape)}, "
                f"the model needs {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    optimizer.load_state_dict(moments)
    return state
