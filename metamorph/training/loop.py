"""Training, whatever the stage: rate, gradients, clip, step or skip, record; resume and stop.

`run_steps` is the whole of it. What differs between stages is behind `Stage`; what a run keeps
besides weights (means, log lines, checkpoints, drawings) is in `Run`.
"""

import math
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from metamorph.config import RunConfig
from metamorph.config.reading import flat
from metamorph.data.skips import check_skip_limit
from metamorph.data.sources import Source
from metamorph.devices import resolve_device
from metamorph.errors import Stopped, UserError
from metamorph.monitor.bad_steps import BadSteps
from metamorph.monitor.means import Means
from metamorph.monitor.profiler import profiled
from metamorph.monitor.reports import Reports
from metamorph.processes import (
    check_processes,
    gather,
    is_first,
    process_group,
    totals,
    wait_for_all,
)
from metamorph.signals import StopSignal
from metamorph.training.checkpoint import Checkpoints, load_checkpoint, read_state
from metamorph.training.checkpoint_tensors import set_rate
from metamorph.training.optimizer import (
    Progress,
    learning_rate,
    logged_rates,
    not_finite,
    step_unless,
)
from metamorph.training.parallel import clip_gradients
from metamorph.training.rules import check_rules, check_same_config
from metamorph.training.run_folder import (
    claim_run_folder,
    find_checkpoint,
    later_if_full,
    locked_run_folder,
)
from metamorph.training.stage import Stage


def train(config: RunConfig, source: Source | None = None) -> Path:
    """Runs a stage and returns the folder of what it trained: `output/model`, or `output/decoder`.

    Writes `config.yaml`, `metrics.jsonl` and checkpoints beside it; and the same to `output/best`,
    if an earlier step than the last was the best on `data.validation`. Started by `torchrun`, it is
    one of several processes that do so together.

    Args:
        config: the whole run.
        source: gives the samples in place of the one that `config.data` names.

    Raises `UserError` for what a user can mend, `Stopped` if interrupted, `Halted` if the disk is
    full or another process has died.
    """
    check_processes()
    config = replace(config)  # what was not said in sections that were put in later is chosen
    device = resolve_device(config.device)
    with process_group(device):
        check_same_config(config)
        check_rules(config, device, own_source=source is not None)
        with locked_run_folder(Path(config.output)):
            return _train(config, device, source)


def _train(config: RunConfig, device: torch.device, source: Source | None) -> Path:
    checkpoint = find_checkpoint(config)
    with closing(open_stage(config, device, source)) as stage, StopSignal() as stop:
        with Run(config, stage, checkpoint, stop) as run:
            run_steps(run, stage)
        folder = stage.save(run.folder)  # a signal no longer stops it: it is nearly done
        wait_for_all()
    best = run.best_checkpoint()
    if best is not None:
        del run, stage  # a model at a time
        save_best(config, device, source, best)
    return folder


def save_best(config: RunConfig, device: torch.device, source: Source | None, best: Path) -> None:
    """Writes the model of a checkpoint to `output/best`, which no signal stops: the run is over.
    All processes call this."""
    with StopSignal(), closing(open_stage(config, device, source)) as stage:
        stage.begin(read_state(best)["step"])
        load_checkpoint(best, stage.module, stage.optimizer, stage.kept)
        stage.save(Path(config.output) / "best")
        wait_for_all()


def open_stage(config: RunConfig, device: torch.device, source: Source | None = None) -> Stage:
    """The stage that `config.stage` names, with its model and data. `check_rules` comes before."""
    if config.trains_decoder:
        from metamorph.training.decoder_stage import DecoderStage  # diffusers takes seconds

        return DecoderStage(config, device, source)
    from metamorph.training.language_stage import LanguageStage

    return LanguageStage(config, device, source)


def run_steps(run: "Run", stage: Stage) -> None:
    """Every step that is left. One whose loss or gradient is not finite changes nothing."""
    training, progress = run.config.training, run.progress
    while not progress.is_over:
        stage.begin(progress.step + 1)
        losses = stage.forward_backward(progress.step)
        progress.advance(stage.lanes.used())
        rate = learning_rate(progress, training)
        set_rate(stage.optimizer, rate)
        norms = clip_gradients(stage.module, training.gradient_clip)
        bad = not_finite(losses, norms)
        step_unless(bad, stage.optimizer)
        stage.stepped(progress.step, bad)
        stage.optimizer.zero_grad()  # to None; apex's FusedAdam takes no argument here
        run.record(rate, losses, norms, bad)


class Run:
    """What a run knows and keeps beside the weights: position, means, log, checkpoints, signals.

    Entered after everything that the stage needs has been opened: only then the folder is claimed.
    An interrupted run that is resumed equals an uninterrupted one bit for bit on a CPU. All
    processes call all methods.
    """

    def __init__(self, config: RunConfig, stage: Stage, checkpoint: Path | None, stop: StopSignal):
        self.config, self.stage, self.stop = config, stage, stop
        self.folder = Path(config.output)
        self.means = Means()
        self.bad_steps = BadSteps(config.training.max_bad_steps)
        self.best: dict[str, float] = {}  # `step` and `validation_loss`, of the lowest loss so far
        self.progress = Progress.of(config.training, len(stage.lanes.source))
        if checkpoint is not None:
            stage.begin(read_state(checkpoint)["step"])
            state = load_checkpoint(checkpoint, stage.module, stage.optimizer, stage.kept)
            stage.load_state_dict(state["stage"])
            self.progress.advance(stage.lanes.used(), state["step"])
            self.means.load_state_dict(state["means"])
            self.bad_steps.load_state_dict(state["bad_steps"])
            self.best = state["best"]
        wait_for_all()  # until every process has looked at the folder

    def __enter__(self) -> "Run":
        config, profile_at = self.config, self.config.monitor.profile if is_first() else 0
        with ExitStack() as opened:
            self.reports = None
            if is_first():
                claim_run_folder(config)
                place = (self.progress.step, self.progress.done, self.progress.total)
                self.reports = opened.enter_context(Reports(config, *place))
            self.checkpoints = opened.enter_context(
                Checkpoints(self.folder, config.training.keep_checkpoints)
            )
            self.profile = opened.enter_context(
                profiled(self.folder / "profile", self.progress.step, profile_at)
            )
            self.opened = opened.pop_all()  # nothing failed: to be closed at the end of the run
        return self

    def __exit__(self, *exception) -> None:
        self.opened.__exit__(*exception)

    def record(
        self,
        rate: float,
        losses: dict[str, Tensor],
        norms: dict[str, Tensor],
        bad: Tensor,
    ) -> None:
        """A step is over: logs, draws, saves and stops as configured.

        Raises `UserError` after too many bad steps in a row or too many unusable samples, `Stopped`
        after a signal.
        """
        training, monitor = self.config.training, self.config.monitor
        done, last = self.progress.step, self.progress.is_over
        self.means.add({**self.stage.observe(losses), **norms}, bad)
        self.bad_steps.add(done, bad, self.stage.last_samples())
        if self.reports is not None:
            self.reports.step_done(self.progress.done)
        if self.profile is not None:
            self.profile.step()
        if done % training.log_every == 0 or last:
            self.log(done, rate)
        if monitor.samples_every and (done % monitor.samples_every == 0 or last):
            self.draw(done)
        is_best = (done % training.validate_every == 0 or last) and self.validate(done)
        stopping, failed = totals([self.stop.requested, self.checkpoints.has_failed()])
        if failed:
            self.settle()
        if last or stopping or is_best or done % training.checkpoint_every == 0:
            self.save(done)
        if stopping and not last:
            raise Stopped(
                f"stopped after step {self.progress}; go on with the same command and --resume"
            )

    def log(self, step: int, rate: float) -> None:
        """A line for the steps since the last one. Saves before it raises for unusable samples."""
        self.bad_steps.read()
        found, skips = self.bad_steps.take(), self.stage.lanes.all_skips()
        telemetry = self.stage.telemetry
        rates = logged_rates(rate, self.config.training)
        line = {**self.progress.epoch, **self.means.values(), **rates, **telemetry.read_meters()}
        if self.reports is not None:
            with later_if_full(self.config, self.reports):
                self.reports.log(step, line, telemetry.describe(line), skips.by_cause(), found)
        self.means = Means()
        try:  # of all samples of all processes, so that their number changes no verdict
            check_skip_limit([skips], self.config.data.skip_limit)
        except UserError:
            self.save(step)
            raise

    def validate(self, step: int) -> bool:
        """Measures losses on `data.validation`; whether they are the best so far. Saves before it
        raises for samples that cannot be used."""
        try:
            values = gather(self.stage.validate())[0]  # of one process: all decide alike
        except UserError:
            self.save(step)
            raise
        lowest = self.best.get("validation_loss", math.inf)
        is_best = values.get("validation_loss", math.inf) < lowest
        if is_best:
            self.best = {"step": step, "validation_loss": values["validation_loss"]}
        if self.reports is not None and values:
            with later_if_full(self.config, self.reports):
                self.reports.validated(step, values, is_best)
        return is_best

    def best_checkpoint(self) -> Path | None:
        """The best on `data.validation`, where it is not of the last step. All call this."""
        best, last = self.checkpoints.best(), self.checkpoints.path(self.progress.step)
        is_other = self.best and best is not None and best != last
        return best if gather(bool(is_other))[0] else None

    def draw(self, step: int) -> None:
        """Keeps a sheet of drawings."""
        sheet = self.stage.draw_samples()
        if self.reports is not None and sheet is not None:
            with later_if_full(self.config, self.reports):
                self.reports.show(step, sheet)

    def save(self, step: int) -> None:
        """Begins to write a checkpoint."""
        self.settle()
        state = {
            "config": flat(replace(self.config, resume=False, overwrite=False)),
            "stage": self.stage.state_dict(),
            "means": self.means.state_dict(),
            "bad_steps": self.bad_steps.state_dict(),
            "best": self.best,
        }
        stage = self.stage
        self.checkpoints.save(step, stage.module, stage.optimizer, state, stage.kept)

    def settle(self) -> None:
        """Waits until the checkpoint before is written. Raises what went wrong with it."""
        with later_if_full(self.config, self.reports):
            self.checkpoints.wait()
