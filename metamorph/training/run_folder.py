"""The folder of a run, and how a run claims it.

run.lock        while a run goes on: which process it is
config.yaml     the resolved configuration
metrics.jsonl   one line per `log_every` steps
samples/        step-NNNNNN.png, where `monitor.samples_every` asks for drawings
tensorboard/    event files, profile/ a trace, where `monitor` asks for them
checkpoints/    step-NNNNNN; best, a link to the one of the lowest loss on `data.validation`
model/          the result (`decoder/` for the stages decoder and distill)
best/           that of the best checkpoint, if it is not the last
"""

import dataclasses
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from metamorph import lock
from metamorph.config import RunConfig
from metamorph.config.reading import flat, iter_fields, load_config, save_config
from metamorph.disk import no_place, remove
from metamorph.errors import Halted, UserError
from metamorph.monitor.reports import Reports
from metamorph.processes import gather, is_first
from metamorph.training.checkpoint import latest_checkpoint, read_state

# What may differ between the two parts of a resumed run without changing its result.
FREE_ON_RESUME = (
    "resume",
    "overwrite",
    "output",
    "device",
    "parallel.",  # it may go on with other processes
    "monitor.",  # and be seen by others
    "data.workers",
    "data.cache",
    "data.cache_gigabytes",
    "data.verify_features",
    "data.skip_limit",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.validate_every",
    "training.validation_rows",
    "training.validation_samples",
    "training.on_full_disk",
    "training.activation_checkpointing",
    "training.max_bad_steps",
)


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint to go on from, or `None` for a new run. Changes nothing on disk. All processes
    call this.

    Raises `UserError` if the folder may not be used: it exists and neither `resume` nor
    `overwrite` was asked for, it is no run folder, or it belongs to another configuration.
    """
    folder = Path(config.output)
    _check_no_file(folder)
    if config.resume:
        checkpoint = latest_checkpoint(folder)
        if checkpoint is None:
            raise UserError(f"resume: {folder} has no checkpoint to go on from")
        _check_same_run(config, read_state(checkpoint)["config"])
        return checkpoint
    if _content(folder):
        if not config.overwrite:
            raise UserError(
                f"output: run folder {folder} exists; add --resume to go on from its last "
                f"checkpoint, or --overwrite to replace it"
            )
        _check_replaceable(config, folder)
    return None


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {folder} is a file, expected a folder")


def _content(folder: Path) -> list[Path]:
    """What is in a run folder beside its lock; last what makes it one, in case it is removed."""
    paths = [path for path in folder.glob("*") if path.name != lock.FILE]
    return sorted(paths, key=lambda path: path.name == "config.yaml")


@contextmanager
def locked_run_folder(folder: Path) -> Generator[None]:
    """The folder, made if it is not there, is this run's for as long as the body runs. All
    processes call this; the first one holds the lock. What is then still empty is removed.

    Raises `UserError` in all of them if it is no folder or another run has it, `Halted` if the disk
    is full, also later.
    """
    refusal = None
    with _halted_by_full_disk(folder), ExitStack() as held:
        if is_first():
            try:
                held.enter_context(_locked(folder))
            except (UserError, OSError) as error:
                refusal = error
        refusal = gather(refusal)[0]
        if refusal is not None:
            raise refusal
        yield


@contextmanager
def _halted_by_full_disk(folder: Path) -> Generator[None]:
    """Raises `Halted` in place of what says that a disk takes nothing more, whoever says it."""
    try:
        yield
    except Exception as error:
        full = no_place(error)
        if full is None:
            raise
        kept = latest_checkpoint(folder)
        way_on = (
            "the run has no checkpoint yet"
            if kept is None
            else f"{kept} is kept: make room and go on with the same command and --resume"
        )
        raise Halted(
            f"cannot write {full.filename or folder}: {full.strerror}; {way_on}"
        ) from error


@contextmanager
def later_if_full(config: RunConfig, reports: Reports | None) -> Generator[None]:
    """Goes on where the disk is full, if `training.on_full_disk` says so, and reports it: the next
    time may find room."""
    try:
        yield
    except Exception as error:
        full = no_place(error)
        if full is None or config.training.on_full_disk == "stop":
            raise
        if reports is not None:
            place = full.filename or config.output
            reports.say(f"cannot write {place}: {full.strerror}; trying again later")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    _check_no_file(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock.locked(folder):
            yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def _check_same_run(config: RunConfig, before: dict[str, Any]) -> None:
    """`before`: the keys and values that the checkpoint was made with, from itself: `config.yaml`
    is for people, who may break it. A key that is newer than the checkpoint had its default."""
    now = flat(config)
    for key, _, default, _ in iter_fields(RunConfig):
        value, was = now[key], before.get(key, default)
        if not key.startswith(FREE_ON_RESUME) and value != was:
            raise UserError(
                f"resume: {key} is {value!r} now and was {was!r} when {config.output} "
                f"began; a resumed run must be the same run"
            )


def _check_replaceable(config: RunConfig, folder: Path) -> None:
    resolved = folder.resolve()
    if Path.cwd().is_relative_to(resolved):
        raise UserError(f"overwrite: {folder} holds the working directory, not removing it")
    try:
        load_config(folder / "config.yaml")
    except UserError:
        raise UserError(
            f"overwrite: {folder} does not look like a run folder, not removing it"
        ) from None
    held_out = config.data.validation
    inputs = {
        "model.folder": config.model.folder,
        "model.language": config.model.language,
        "model.vision": config.model.vision,
        "model.chat_template": config.model.chat_template,
        "data.path": config.data.path,
        "data.image_root": config.data.image_root,
        "data.cache": config.data.cache,
        "data.features": config.data.features,
        "data.validation": held_out if isinstance(held_out, str) else "",
        "decoder.base": config.decoder.base,
        "decoder.teacher": config.decoder.teacher,
        "monitor.decoder": config.monitor.decoder,
    }
    for key, name in inputs.items():
        if name and Path(name).resolve().is_relative_to(resolved):
            raise UserError(f"overwrite: {folder} holds {key} ({name}), not removing it")


def claim_run_folder(config: RunConfig) -> Path:
    """Keeps or replaces what is in the folder as `find_checkpoint` allowed; writes its config."""
    folder = Path(config.output)
    if config.overwrite and not config.resume:
        for path in _content(folder):
            remove(path)
    # A config that is run again must not replace or resume anything unasked.
    save_config(dataclasses.replace(config, resume=False, overwrite=False), folder / "config.yaml")
    return folder
