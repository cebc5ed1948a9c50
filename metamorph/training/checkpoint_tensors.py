"""What a checkpoint holds as tensors: trained parameters, optimizer, averages, random numbers.

model.NAME             a trained parameter
optimizer.NAME.KEY     what the optimizer knows of it
average.NAME           its moving average, where a run keeps one
random.DEVICE.RANK     the state of a process's generator, uint8
"""

import pickle
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import (
    CheckpointException,
    FileSystemReader,
    FileSystemWriter,
    Metadata,
)
from torch.distributed.checkpoint.filesystem import FileSystem

from metamorph.disk import PieceHashes
from metamorph.errors import UserError
from metamorph.model.float8_gather import plain
from metamorph.processes import rank

METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "uint8", "int64", "float32", "bfloat16"},
}  # fmt: skip


class HashingWriter(FileSystemWriter):
    """A writer that hashes what it writes, on the way."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.hashing = _HashingFileSystem()
        # pyrefly: ignore[bad-override-mutable-attribute]  nobody sets another one later
        self.fs = self.hashing

    def write_data(self, plan, planner):
        try:
            return super().write_data(plan, planner)
        except Exception as error:  # torch says of a full disk that a position is unexpected
            if self.hashing.failure is None:
                raise
            raise self.hashing.failure from error

    @property
    def hashes(self) -> dict[str, list[str]]:
        """The SHA-256 of the pieces of each file that this process has written, by its name."""
        return self.hashing.hashes


class _HashingFileSystem(FileSystem):
    def __init__(self):
        self.hashes: dict[str, list[str]] = {}
        self.failure: OSError | None = None

    @contextmanager
    def create_stream(self, path, mode) -> Generator:
        with super().create_stream(path, mode) as file:
            stream = _HashingStream(file)
            try:
                yield stream
            finally:
                self.failure = self.failure or stream.failure
        self.hashes[Path(path).name] = stream.pieces.hexadecimal()

    def rename(self, path, new_path) -> None:
        super().rename(path, new_path)
        self.hashes[Path(new_path).name] = self.hashes.pop(Path(path).name)


class _HashingStream:
    """A file that torch writes from its beginning to its end."""

    def __init__(self, file):
        self.file, self.pieces = file, PieceHashes()
        self.failure: OSError | None = None

    def write(self, data) -> int:
        self.pieces.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = OSError(error.errno, error.strerror, self.file.name)
            raise

    def __getattr__(self, name: str):
        return getattr(self.file, name)  # tell, flush, fileno, close


class MetadataUnpickler(pickle.Unpickler):
    """Reads the metadata of a checkpoint and no other pickle: those may run anything."""

    def find_class(self, module: str, name: str):
        if name not in METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f".metadata names {module}.{name}")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """A reader whose metadata is read by `MetadataUnpickler`; tensors it reads weights-only."""

    def read_metadata(self, *arguments, **keywords) -> Metadata:
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as file:
            return MetadataUnpickler(file).load()


def told_by_torch(error: BaseException) -> BaseException:
    """What happened in the first process that failed, where torch has wrapped it."""
    if isinstance(error, CheckpointException):
        return next(iter(error.failures.values()))[0]
    return error


def trained_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Trained parameters and the optimizer's tensors by name: themselves, to be loaded into."""
    tensors = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            tensors[f"model.{name}"] = plain(parameter)
            for key, value in optimizer.state.get(parameter, {}).items():
                if hasattr(value, "codes"):  # torchao's: 8 bits a value and a scale for each block
                    tensors[f"optimizer.{name}.{key}.codes"] = value.codes
                    tensors[f"optimizer.{name}.{key}.scale"] = value.scale
                else:
                    tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def init_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Lets an optimizer that has not stepped yet make its state for what is trained, to be loaded
    into: a step of a rate and gradients of 0, which moves nothing."""
    if optimizer.state:
        return
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    set_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()  # to None; apex's FusedAdam takes no argument here
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        _set_rate(group, rate)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all groups, each times its `rate_factor` if it has one."""
    for group in optimizer.param_groups:
        _set_rate(group, rate * group.get("rate_factor", 1.0))


def _set_rate(group: dict, rate: float) -> None:
    if isinstance(group["lr"], Tensor):  # torchao's, which are compiled
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def optimizer_numbers(optimizer: torch.optim.Optimizer) -> dict:
    """What some optimizers count once for a group, not for each parameter."""
    return {"optimizer_steps": [group.get("step") for group in optimizer.param_groups]}


def random_states(saved: Collection[str] | None = None) -> dict[str, Tensor]:
    """The states of this process's generators; only those that are `saved`, if given."""
    states = {f"random.cpu.{rank()}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random.cuda.{rank()}"] = torch.cuda.get_rng_state()
    return {key: state for key, state in states.items() if saved is None or key in saved}


def set_random_states(tensors: dict[str, Tensor]) -> None:
    """Takes up what `random_states` gave. A process that was not there keeps its own."""
    for device, restore in (("cpu", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
        if f"random.{device}.{rank()}" in tensors:
            restore(tensors[f"random.{device}.{rank()}"])


def check_fits(path: Path, saved: dict, module: nn.Module) -> None:
    """Raises `UserError` unless the tensors `saved` in a checkpoint, by name, are those that
    `module` trains."""
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
