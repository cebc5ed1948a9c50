"""What differs between stages of training, and what the loop asks of each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.data.lanes import OwnLanes
from metamorph.monitor.telemetry import Telemetry


class Stage(Protocol):
    """What differs between stages. Parameters of `module` that require gradients are trained.

    All processes of a run call all methods alike; the first one writes.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def lanes(self) -> OwnLanes: ...

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """What a checkpoint holds beside weights and optimizer, to be loaded into."""

    def begin(self, number: int) -> None:
        """Lets those parameters require gradients that step `number`, from 1, trains. Called before
        the step, and before a checkpoint of it is loaded."""

    def forward_backward(self, step: int) -> dict[str, Tensor]:
        """Adds the gradients of optimizer step `step`, counted from 0; returns its losses, on the
        device."""

    def stepped(self, number: int, bad: Tensor) -> None:
        """The optimizer has done step `number`, from 1, unless that was `bad`."""

    def observe(self, losses: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """What to log of the last step, which had these losses, on the device."""

    def validate(self) -> dict[str, float]:
        """Means over `data.validation`, `validation_loss` among them; none without that key."""

    def draw_samples(self) -> Image.Image | None:
        """A sheet of drawings in the first process, where `monitor.samples_every` asks for it."""

    def last_samples(self) -> list[str]:
        """Ids of this process's samples of the last step, to name them if it was not finite."""

    def state_dict(self) -> dict:
        """JSON-able state besides weights and optimizer, the same in every process."""

    def load_state_dict(self, state: dict) -> None: ...

    def describe_plan(self) -> list[str]:
        """What training would do, in paragraphs, for a dry run."""

    def save(self, folder: Path) -> Path:
        """Writes the trained model to the run folder; returns where."""

    def close(self) -> None: ...
