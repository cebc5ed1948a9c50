"""The folder of a run: resolved config, metrics, checkpoints, and the way a run starts and stops.

config.yaml     the resolved configuration
metrics.jsonl   one line per ``log_every`` steps
checkpoints/    step-NNNNNN
model/          the result
"""

import json
import shutil
import signal
from pathlib import Path

import torch

from metamorph.config import RunConfig, save_config
from metamorph.errors import UserError
from metamorph.training.checkpoint import latest_checkpoint


def prepare_run_folder(config: RunConfig) -> tuple[Path, Path | None]:
    """Creates the run folder; returns it with the checkpoint to resume from, if any.

    Raises ``UserError`` if the folder holds something and neither ``resume`` nor ``overwrite``
    was asked for: nothing that exists is lost by accident.
    """
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {folder} is a file, expected a folder")
    checkpoint = latest_checkpoint(folder) if config.resume else None
    if config.resume and checkpoint is None:
        raise UserError(f"resume: {folder} has no checkpoint to go on from")
    if not config.resume and folder.exists() and any(folder.iterdir()):
        if not config.overwrite:
            raise UserError(
                f"output: run folder {folder} exists; add --resume true to go on from its last "
                f"checkpoint, or --overwrite true to replace it"
            )
        is_run = (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists()
        if not is_run:
            raise UserError(f"overwrite: {folder} does not look like a run folder, not removing it")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    return folder, checkpoint


class MetricsFile:
    """Appends JSON lines; on resume drops the lines past the checkpoint's step."""

    def __init__(self, folder: Path, resumed_step: int):
        self.path = folder / "metrics.jsonl"
        kept = [m for m in read_metrics(folder) if m["step"] <= resumed_step]
        self.path.write_text("".join(json.dumps(m) + "\n" for m in kept))

    def write(self, **values) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(folder: Path) -> list[dict]:
    """All lines of a run's ``metrics.jsonl``."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step; a second one kills.

    Used as a context manager; ``requested`` is looked at between steps.
    """

    def __enter__(self) -> "StopSignal":
        self.requested = False
        self._previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for number in self._previous:
            signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, or the CPU. Raises ``UserError`` for an absent device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: {name!r} is not a device (auto, cpu, cuda or cuda:N)") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {name!r} was asked for, but CUDA is not available")
    return device
