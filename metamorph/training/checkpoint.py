"""Checkpoints that are whole or absent, and exact: weights, optimizer, position in the data.

A checkpoint is written in the background under a temporary name, by all processes, and renamed when
complete. A folder counts as one only by its exact name; other names beside it are left alone.
Without its marker, which is written last, it is damaged. Any number of processes can resume it.

.metadata, *.distcp   weights, optimizer and averages, as torch.distributed.checkpoint writes them
state.json            what else the run must know
complete.json         the marker: the step, the size of every file and the SHA-256 of its pieces
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import Optimizer

from metamorph import disk
from metamorph.errors import UserError
from metamorph.processes import gather, is_first, merged, share, wait_for_all
from metamorph.training.checkpoint_tensors import (
    HashingWriter,
    SafeReader,
    check_fits,
    init_optimizer,
    optimizer_numbers,
    random_states,
    set_random_states,
    told_by_torch,
    trained_tensors,
)

Tensors = Mapping[str, Tensor]
NONE: Tensors = {}
MARKER, STATE, METADATA, BEST = "complete.json", "state.json", ".metadata", "best"
# A run of one process is no mistake, whatever torch thinks of it at every checkpoint.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step below `folder/checkpoints`, damaged or not."""
    found = _by_step(folder / "checkpoints")
    return found[-1] if found else None


def _by_step(parent: Path) -> list[Path]:
    found = [p for p in parent.glob("step-*") if (p / MARKER).is_file() or (p / STATE).is_file()]
    steps = {step: path for path in found if (step := _step_of(path)) is not None}
    return [steps[step] for step in sorted(steps)]


def _step_of(path: Path) -> int | None:
    """The step of a checkpoint; None for any other file or folder."""
    digits = path.name.removeprefix("step-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    step = int(digits)
    return step if path.name == checkpoint_name(step) else None


class Checkpoints:
    """Writes `folder/checkpoints/step-NNNNNN`, one at a time, and keeps the newest `keep`, and the
    best: the one that the link `best` leads to.

    All processes call all methods. What a crash left half written is removed at the start.
    """

    def __init__(self, folder: Path, keep: int):
        self.parent, self.keep = folder / "checkpoints", keep
        self.pending: Future | None = None
        # A group of its own: the background must not mix its messages with those of the steps.
        self.group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None
        if is_first():
            self.parent.mkdir(parents=True, exist_ok=True)
            for left in self.parent.glob(".step-*"):
                if left.suffix in (".incomplete", ".discarded"):
                    disk.remove(left)
        wait_for_all()

    def save(
        self, step: int, module: nn.Module, optimizer: Optimizer, state: dict, kept: Tensors = NONE
    ) -> None:
        """Copies what is to be saved to host memory and returns while it is written.

        `module`: its parameters that are trained are saved. `state`: JSON-able, the same in
        every process; it comes back as is. The `step` of its `best`, if any, is that of the best
        checkpoint so far. `kept`: further tensors. Raises what went wrong with the one before.
        """
        self.wait()
        temporary = self.parent / f".{checkpoint_name(step)}.incomplete"
        tensors = trained_tensors(module, optimizer) | dict(kept) | random_states()
        text = json.dumps({"step": step, **optimizer_numbers(optimizer), **state}, indent=1)
        writer = HashingWriter(temporary)
        # pyrefly: ignore[bad-assignment]  anything else than a Future has to be asked for
        written: Future = dcp.async_save(
            tensors,
            storage_writer=writer,
            process_group=self.group,
            no_dist=self.group is None,
        )
        published: Future = Future()
        self.pending = published

        def publish(done: Future) -> None:  # in the background
            try:
                done.result()  # every process has written its part
                hashes = merged(gather(writer.hashes, self.group))
                best = state.get("best", {}).get("step")
                failure = None
                if is_first():
                    failure = self._publish(temporary, step, text, hashes, best)
                failure = gather(failure, self.group)[0]
            except BaseException as error:  # whoever waits for it shall know
                failure = error
            if failure is None:
                published.set_result(None)
            else:
                if is_first():  # it may be what fills the disk
                    shutil.rmtree(temporary, ignore_errors=True)
                published.set_exception(told_by_torch(failure))

        written.add_done_callback(publish)

    def _publish(
        self, temporary: Path, step: int, text: str, hashes: dict[str, list[str]], best: int | None
    ) -> OSError | None:
        """Makes a checkpoint of what all have written. Returns what the disk had against it."""
        try:
            disk.write_text(temporary / STATE, text)
            hashes = {**hashes, STATE: [disk.piece_hash(temporary / STATE, 0)]}
            sizes = {name: (temporary / name).stat().st_size for name in sorted(hashes)}
            disk.sync(temporary)
            marker = {"step": step, "sizes": sizes, "sha256": hashes}
            disk.write_text(temporary / MARKER, json.dumps(marker, indent=1, sort_keys=True))
            disk.sync(temporary)
            final = self.parent / checkpoint_name(step)
            _make_way(final)
            temporary.rename(final)
            disk.sync(self.parent)
            if best is not None and self.path(best).exists():  # a full disk may have refused it
                self._name_best(best)
            for old in _by_step(self.parent)[: -self.keep]:
                if old != self.best():
                    disk.discard(old)
        except OSError as error:
            return error

    def _name_best(self, step: int) -> None:
        """Lets the link `best` lead to the checkpoint of a step, by one rename."""
        link, new = self.parent / BEST, self.parent / f".{BEST}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(checkpoint_name(step))
        if link.exists() and not link.is_symlink():  # somebody else's, which is kept beside it
            disk.set_aside(link)
        new.replace(link)

    def best(self) -> Path | None:
        """The checkpoint that the link `best` leads to."""
        link = self.parent / BEST
        return self.parent / link.readlink() if link.is_symlink() else None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.parent / checkpoint_name(step)

    def has_failed(self) -> bool:
        """Whether `wait` would raise at once, in this process."""
        return (
            self.pending is not None
            and self.pending.done()
            and self.pending.exception() is not None
        )

    def wait(self) -> None:
        """Returns once nothing is being written any more. Raises what went wrong with it."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.wait()


def _make_way(path: Path) -> None:
    """Frees a checkpoint's name: of a folder that has no marker or is of a run done again, or of
    what was never a checkpoint, which is kept beside it."""
    if path.is_dir() and not path.is_symlink():
        disk.discard(path)
    elif path.is_symlink() or path.exists():
        disk.set_aside(path)


def read_state(path: Path) -> dict:
    """What `Checkpoints.save` was given as `state`, with `step`. All processes call this.

    Raises `UserError` if that file is not what was saved.
    """
    damage = _find_damage(path, [STATE])
    if damage is not None:
        raise _damaged(path, damage)
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, kept: Tensors = NONE
) -> dict:
    """Restores parameters, optimizer, what was `kept` and random numbers in place; returns the
    saved `state` with `step`. Every process reads its own part; all call this.

    Raises `UserError` if the checkpoint is damaged, or belongs to a model of another shape or
    another stage; parameters and optimizer are then as before.
    """
    damage = _find_damage(path)
    if damage is not None:
        raise _damaged(path, damage)
    reader = SafeReader(path)
    try:
        saved = reader.read_metadata().state_dict_metadata
    except Exception as error:  # a pickle that torch has not written may raise anything
        raise _damaged(path, f"{METADATA} is not torch's ({error})") from error
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    check_fits(path, saved, module)
    init_optimizer(optimizer)
    tensors = trained_tensors(module, optimizer) | dict(kept) | random_states(saved)
    differing = sorted(key for key in tensors if key not in saved)
    if differing:
        raise UserError(f"checkpoint {path} does not fit: it does not hold {differing[0]}")
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:
        raise _damaged(path, str(told_by_torch(error))) from error
    set_random_states(tensors)
    for group, step in zip(optimizer.param_groups, state["optimizer_steps"], strict=True):
        if step is not None:
            group["step"] = step
    return state


def _damaged(path: Path, damage: str) -> UserError:
    """All processes call this: they look together for an older checkpoint to go on from."""
    found = _by_step(path.parent)
    older = found[: found.index(path)] if path in found else []
    good = next((other for other in reversed(older) if _find_damage(other) is None), None)
    way_on = (
        "and there is no older good one"
        if good is None
        else f"remove it to go on from the next older good one, {good}"
    )
    return UserError(f"checkpoint {path} is damaged: {damage}; {way_on}")


def _find_damage(path: Path, names: list[str] | None = None) -> str | None:
    """In what a checkpoint's files (or those named) are not what was saved; None if they are.

    All processes call this: each reads a share of the files.
    """
    found = None
    try:
        marker = _read_marker(path)
        names = sorted(marker["sha256"]) if names is None else names
        found = _differing(path, marker, names)
    except (ValueError, RecursionError) as error:
        found = f"{MARKER}: {error}"
    except FileNotFoundError:
        found = f"{MARKER} is missing"
    except OSError as error:
        found = f"{Path(error.filename or MARKER).name} cannot be read: {error.strerror or error}"
    return next((damage for damage in gather(found) if damage is not None), None)


def _read_marker(path: Path) -> dict[str, Any]:
    """Raises `ValueError` unless it lists, for the step of the folder, what a checkpoint has."""
    marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
    if not isinstance(marker, dict) or marker.keys() != {"step", "sizes", "sha256"}:
        raise ValueError("expected the step, and sizes and SHA-256 of files")
    step, sizes, hashes = marker["step"], marker["sizes"], marker["sha256"]
    if not isinstance(step, int) or checkpoint_name(step) != path.name:
        raise ValueError("it is of another step")
    if not isinstance(sizes, dict) or not isinstance(hashes, dict) or sizes.keys() != hashes.keys():
        raise ValueError("expected size and SHA-256 of the same files")
    for name, size in sizes.items():
        pieces = hashes[name]
        of_kind = isinstance(size, int) and isinstance(pieces, list)
        if not of_kind or len(pieces) != max(1, -(-size // disk.PIECE)):
            raise ValueError(f"expected as many SHA-256 of {name} as it has pieces")
    if not {STATE, METADATA} <= sizes.keys() or any(Path(name).name != name for name in sizes):
        raise ValueError(f"expected names of files, {STATE} and {METADATA} among them")
    return marker


def _differing(path: Path, marker: dict[str, Any], names: list[str]) -> str | None:
    for name in names:
        if not (path / name).is_file():
            return f"{name} is missing"
        size = (path / name).stat().st_size
        if size != marker["sizes"][name]:
            return f"{name} has {size} bytes, but {marker['sizes'][name]} were saved"
    saved = [(name, *piece) for name in names for piece in enumerate(marker["sha256"][name])]
    own = share(saved)
    found = disk.in_threads(lambda piece: disk.piece_hash(path / piece[0], piece[1]), own)
    for (name, _, expected), content in zip(own, found, strict=True):
        if content != expected:
            return f"{name} is not what was saved (its SHA-256 differs)"
    return None
