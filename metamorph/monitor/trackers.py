"""Where figures and pictures of a run go beside the console and metrics.jsonl."""

import dataclasses
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from metamorph.config import RunConfig
from metamorph.disk import no_place
from metamorph.pixels import as_shown

PROJECT = "metamorph"
# Files in the run folder, by which a resumed run goes on in the same page.
WANDB_ID, TRACKIO_NAME = "wandb_run_id", "trackio_run_name"


class Tracker(Protocol):
    """A place for them. All calls are of one process."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def show(self, step: int, name: str, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


def open_trackers(config: RunConfig, first_step: int) -> list[Tracker]:
    """Those that `config.monitor` asks for. Raises `UserError` for one that is not installed.

    What an interrupted run wrote after `first_step` is replaced in TensorBoard alone.
    """
    folder = Path(config.output)
    trackers: list[Tracker] = []
    if config.monitor.tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", first_step))
    if config.monitor.wandb:
        trackers.append(WeightsAndBiases(folder, config))
    if config.monitor.trackio:
        trackers.append(Trackio(folder, config))
    return trackers


class TensorBoard:
    """Event files for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, first_step: int):
        self.folder, self.purged = folder, first_step + 1 if first_step else None
        self._hook, threading.excepthook = threading.excepthook, self._of_a_thread
        self.writer = None
        self._written(lambda writer: None)

    def write(self, step: int, values: dict[str, float]) -> None:
        def all_values(writer) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._written(all_values)

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        pixels = np.asarray(as_shown(picture))
        self._written(lambda writer: writer.add_image(name, pixels, step, dataformats="HWC"))

    def close(self) -> None:
        threading.excepthook = self._hook
        if self.writer is not None:
            self.writer.close()

    def _written(self, write: Callable) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            if self.writer is None:
                self.writer = SummaryWriter(str(self.folder), purge_step=self.purged)
            write(self.writer)
            self.writer.flush()
        except OSError:  # the writer's thread has died of it: the next call begins another file
            self.writer, self.purged = None, None
            raise

    def _of_a_thread(self, arguments: threading.ExceptHookArgs) -> None:
        """A full disk is told by the call above, not by the writer's thread too."""
        if no_place(arguments.exc_value) is None:
            self._hook(arguments)


class WeightsAndBiases:
    """A run of the project `metamorph`; account, server and offline mode are wandb's settings."""

    def __init__(self, folder: Path, config: RunConfig):
        import wandb

        known = folder / WANDB_ID
        earlier = known.read_text().strip() if known.exists() else None
        self.wandb = wandb
        self.run = wandb.init(
            project=PROJECT,
            name=folder.name,
            dir=str(folder),
            id=earlier,
            resume="allow",
            config=dataclasses.asdict(config),
        )
        known.write_text(self.run.id)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        self.run.log({name: self.wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of the project `metamorph`; where trackio keeps it, this machine unless it is told of a
    server or Space, is its own settings."""

    def __init__(self, folder: Path, config: RunConfig):
        import trackio

        known = folder / TRACKIO_NAME
        if known.exists():
            name = known.read_text().strip()
        else:  # it knows runs by their name alone, and the folders of two may be called the same
            name = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self.trackio = trackio
        self.run = trackio.init(
            project=PROJECT, name=name, resume="allow", config=dataclasses.asdict(config)
        )
        known.write_text(name)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        self.run.log({name: self.trackio.Image(picture)}, step=step)

    def close(self) -> None:
        self.run.finish()
