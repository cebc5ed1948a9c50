"""The loop that every stage shares: rate, step, clip, log, checkpoint, stop, resume."""

import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metamorph.config import RunConfig
from metamorph.errors import Stopped, UserError
from metamorph.training.checkpoint import load_checkpoint, save_checkpoint
from metamorph.training.run_folder import MetricsFile, StopSignal, claim_run_folder, find_checkpoint
from metamorph.training.schedule import learning_rate


class Stage(Protocol):
    """What differs between stages. Parameters of ``module`` that require gradients are trained."""

    module: nn.Module
    optimizer: torch.optim.Optimizer

    def accumulate_gradients(self, step: int) -> dict[str, Tensor | float]:
        """Forward and backward of optimizer step ``step``; returns what to log, on the device."""

    def read_meters(self) -> dict[str, float]:
        """Further values for a log line, such as speed, since the last call."""

    def describe(self, values: dict) -> str:
        """A log line's values in a few words, for the progress bar."""

    def last_samples(self) -> list[str]:
        """Ids of the samples of the last step, to name them when a loss is not finite."""

    def skipped(self) -> dict[str, tuple[int, str]]:
        """Per cause: how many samples were skipped, and the message of the first one."""

    def state_dict(self) -> dict:
        """JSON-able state besides weights and optimizer."""

    def load_state_dict(self, state: dict) -> None: ...


class Means:
    """Means since the last log line, kept on the device and carried over a resume."""

    def __init__(self):
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor | float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict:
        sums = {name: float(total) for name, total in self.sums.items()}
        return {"sums": sums, "counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def run_steps(config: RunConfig, stage: Stage) -> Path:
    """Trains to ``training.steps`` and returns the run folder, which holds a last checkpoint.

    The folder is claimed only here, after everything that the stage needs has been opened. An
    interrupted run that is resumed equals an uninterrupted one bit for bit on a CPU. Raises
    ``Stopped`` after Ctrl-C or SIGTERM, and ``UserError`` for a loss that is not finite.
    """
    training = config.training
    checkpoint = find_checkpoint(config)
    means = Means()
    first_step = 0
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, stage.module, stage.optimizer)
        first_step = state["step"]
        stage.load_state_dict(state["stage"])
        means.load_state_dict(state["means"])
    folder = claim_run_folder(config)
    metrics = MetricsFile(folder, first_step)
    trained = [p for p in stage.module.parameters() if p.requires_grad]

    def checked_means(step: int) -> dict[str, float]:
        values = means.values()
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"step {step}: a loss or gradient is not finite ({values}); the last samples were "
                f"{stage.last_samples()[:8]}. Look at them or lower the learning rate; nothing of "
                f"this was saved"
            )
        return values

    def save(step: int) -> None:
        checked_means(step)
        state = {"stage": stage.state_dict(), "means": means.state_dict()}
        keep = training.keep_checkpoints
        save_checkpoint(folder, step, stage.module, stage.optimizer, state, keep)

    bar = tqdm(range(training.steps), initial=first_step, desc=config.stage, mininterval=1)
    try:
        with StopSignal() as stop:
            for step in range(first_step, training.steps):
                rate = learning_rate(step, training)
                for group in stage.optimizer.param_groups:
                    group["lr"] = rate
                values = stage.accumulate_gradients(step)
                norm = nn.utils.clip_grad_norm_(trained, training.gradient_clip)
                stage.optimizer.step()
                stage.optimizer.zero_grad()  # to None; apex's FusedAdam takes no argument here
                means.add({**values, "gradient_norm": norm})
                bar.update()

                done = step + 1
                if done % training.log_every == 0 or done == training.steps:
                    line = {**checked_means(done), "learning_rate": rate, **stage.read_meters()}
                    skips = {cause: count for cause, (count, _) in stage.skipped().items()}
                    metrics.write(step=done, **line, skipped=skips)
                    bar.set_postfix_str(stage.describe(line), refresh=False)
                    means = Means()
                last = done == training.steps
                if last or stop.requested or done % training.checkpoint_every == 0:
                    save(done)
                if stop.requested and not last:
                    raise Stopped(
                        f"stopped after step {done} of {training.steps}; "
                        f"go on with the same command and --resume"
                    )
    finally:
        bar.close()
        for cause, (count, example) in stage.skipped().items():
            print(f"skipped {count} samples: {cause} (first: {example})")
    return folder
