"""The loop that every stage shares: rate, step, clip, log, checkpoint, stop, resume."""

from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.data.skips import Skips, check_skip_limit, sum_skips
from metamorph.errors import Stopped, UserError
from metamorph.training.checkpoint import Checkpoints, load_checkpoint
from metamorph.training.checkpoint_tensors import set_rate
from metamorph.training.means import BadSteps, Means
from metamorph.training.parallel import clip_gradients, local_part
from metamorph.training.processes import (
    any_process,
    gather,
    is_first,
    wait_for_all,
)
from metamorph.training.profiler import profiled
from metamorph.training.reports import Reports
from metamorph.training.run_folder import StopSignal, claim_run_folder, find_checkpoint
from metamorph.training.schedule import learning_rate
from metamorph.training.trackers import check_trackers


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

    def draw_samples(self) -> Image.Image | None:
        """A sheet of drawings in the first process, where ``monitor.samples_every`` asks for it."""

    def last_samples(self) -> list[str]:
        """Ids of the samples of the last step, to name them when a loss is not finite."""

    def skipped(self) -> Skips:
        """Samples of this process that could not be used."""

    def state_dict(self) -> dict:
        """JSON-able state besides weights and optimizer."""

    def load_state_dict(self, state: dict) -> None: ...


def run_steps(config: RunConfig, stage: Stage) -> Path:
    """Trains to ``training.steps`` and returns the run folder, which holds a last checkpoint.

    The folder is claimed only here, after everything that the stage needs has been opened. An
    interrupted run that is resumed equals an uninterrupted one bit for bit on a CPU. A step whose
    loss or gradient is not finite changes nothing; too many in a row raise ``UserError``. Raises
    ``Stopped`` after a signal. All processes of a run call this; the first one writes.
    """
    training, monitor = config.training, config.monitor
    check_trackers(config)
    checkpoint = find_checkpoint(config)
    means, bad_steps = Means(), BadSteps(training.max_bad_steps)
    first_step = 0
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, stage.module, stage.optimizer)
        first_step = state["step"]
        stage.load_state_dict(state["stage"])
        means.load_state_dict(state["means"])
        bad_steps.load_state_dict(state["bad_steps"])
    wait_for_all()  # until every process has looked at the folder
    folder = Path(config.output)
    reports = None
    if is_first():
        claim_run_folder(config)
        reports = Reports(config, first_step)
    checkpoints = Checkpoints(folder, training.keep_checkpoints)

    def log(step: int, rate: float) -> None:
        nonlocal means
        bad_steps.read()
        found, skips = bad_steps.take(), all_skips(stage)
        line = {**means.values(), "learning_rate": rate, **stage.read_meters()}
        if reports is not None:
            reports.log(step, line, stage.describe(line), skips.by_cause(), found)
        means = Means()
        try:  # judged by all samples of all processes: how many there are does not matter
            check_skip_limit([skips], config.data.skip_limit)
        except UserError:
            save(step)
            raise

    def save(step: int) -> None:
        state = {
            "stage": stage.state_dict(),
            "means": means.state_dict(),
            "bad_steps": bad_steps.state_dict(),
        }
        checkpoints.save(step, stage.module, stage.optimizer, state)

    profile_at = monitor.profile if is_first() else 0
    with (
        reports or nullcontext(),
        checkpoints,
        StopSignal() as stop,
        profiled(folder / "profile", first_step, profile_at) as profile,
    ):
        for step in range(first_step, training.steps):
            rate = learning_rate(step, training)
            set_rate(stage.optimizer, rate)
            values = stage.accumulate_gradients(step)
            norm, part_norms = clip_gradients(stage.module, training.gradient_clip)
            bad = not_finite(norm, values)
            step_unless(bad, stage.optimizer)
            stage.optimizer.zero_grad()  # to None; apex's FusedAdam takes no argument here
            part_norms = {f"gradient_norm_{name}": part for name, part in part_norms.items()}
            means.add({**values, "gradient_norm": norm, **part_norms}, bad)
            if reports is not None:
                reports.step_done()
            if profile is not None:
                profile.step()

            done = step + 1
            bad_steps.add(done, bad, stage.last_samples())
            last = done == training.steps
            if done % training.log_every == 0 or last:
                log(done, rate)
            if monitor.samples_every and (done % monitor.samples_every == 0 or last):
                sheet = stage.draw_samples()
                if reports is not None:
                    reports.show(done, sheet)
            stopping = any_process(stop.requested)
            if last or stopping or done % training.checkpoint_every == 0:
                save(done)
            if stopping and not last:
                raise Stopped(
                    f"stopped after step {done} of {training.steps}; "
                    f"go on with the same command and --resume"
                )
    return folder


def all_skips(stage: Stage) -> Skips:
    """``stage.skipped()`` of all processes together; all must call this."""
    states = gather(stage.skipped().state_dict())
    return sum_skips(Skips.of(state) for state in states)


def not_finite(norm: Tensor, values: dict[str, Tensor | float]) -> Tensor:
    """Whether a gradient's norm or any of a step's values is not finite: a bool of the device."""
    numbers = [value for value in values.values() if isinstance(value, Tensor)]
    device = numbers[0].device
    return ~torch.stack([*numbers, norm.to(device)]).isfinite().all()


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Steps, or leaves weights and optimizer as they are if ``bad``.

    PyTorch's fused AdamW decides on the device, by the attributes that a gradient scaler sets.
    Others cannot: the host has to know.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        moved = next(p for group in optimizer.param_groups for p in group["params"])
        # To a CPU (offload) this waits, as it must: torch's own copy of the flag would not.
        optimizer.grad_scale, optimizer.found_inf = None, bad.float().to(local_part(moved).device)
        optimizer.step()
    elif not bad:
        optimizer.step()
