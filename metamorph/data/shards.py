"""Tensors of pictures on disk, found by the key of the picture.

index.json               what they are of, their stored form and its error, the shards
shard-00000.safetensors  the tensors [rows, ...] and keys [rows, 32]
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, TypeVar, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metamorph.data.images import DECODING
from metamorph.disk import in_threads, sha256_of
from metamorph.errors import UserError
from metamorph.model.weights import read_json
from metamorph.pixels import Fit
from metamorph.processes import gather, share

INDEX = "index.json"
KEY_BYTES = 32
ANEW = "metamorph encode with the same output makes it anew"
DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "fp32": torch.float32
}  # fmt: skip
IN_FILES = {"bf16": "BF16", "fp16": "F16", "int8": "I8", "fp32": "F32"}  # as safetensors calls them


@dataclass(frozen=True)
class Shard:
    """One file. Errors are what storing changed: of features 1 - cosine to fp32, of latents how far
    their mean moved."""

    file: str
    rows: int
    sha256: str
    mean_error: float
    largest_error: float


@dataclass(frozen=True, kw_only=True)
class ShardIndex(ABC):
    """What every `index.json` says.

    `decoding`: `images.DECODING` of when it was written; `fit`: how pictures became squares. The
    defaults are those of folders that were written before a field was kept.
    """

    WHAT: ClassVar[str]  # for messages
    COUNTS: ClassVar[tuple[str, ...]]  # fields that are whole numbers

    dtype: str  # a key of DTYPES
    shards: tuple[Shard, ...] = ()
    decoding: int = 1
    fit: Fit = "squash"

    @property
    @abstractmethod
    def shapes(self) -> dict[str, list[int]]:
        """Of the tensors of one picture, by name."""

    def is_sound(self) -> bool:
        """Whether all is of its kind: `index.json` may hold anything."""
        counts = [getattr(self, name) for name in self.COUNTS] + [s.rows for s in self.shards]
        errors = [e for shard in self.shards for e in (shard.mean_error, shard.largest_error)]
        return (
            self.dtype in DTYPES
            and self.fit in get_args(Fit)
            and all(Path(shard.file).name == shard.file != "" for shard in self.shards)
            and all(type(count) is int and count > 0 for count in counts)
            and all(type(error) in (int, float) for error in errors)
        )

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def mean_error(self) -> float:
        """Of all rows; 0 if there are none."""
        return sum(s.mean_error * s.rows for s in self.shards) / max(self.rows, 1)

    @property
    def largest_error(self) -> float:
        return max((shard.largest_error for shard in self.shards), default=0.0)


Index = TypeVar("Index", bound=ShardIndex)


def read_index(index_class: type[Index], folder: Path) -> Index:
    """Raises `UserError` if there is none, or it was changed by hand."""
    values = read_json(folder / INDEX)
    try:
        shards = tuple(Shard(**shard) for shard in values.pop("shards"))
        index = index_class(**values, shards=shards)
        if index.is_sound():
            return index
    except (TypeError, KeyError, AttributeError):
        pass  # as for one whose fields have values of another kind
    raise UserError(
        f"{folder / INDEX} is no index of {index_class.WHAT}: a field is missing, unknown or of "
        f"another kind; {ANEW}"
    )


class ShardFolder:
    """Tensors by key. Files are mapped into memory; all keys are held, 32 bytes each.

    With `verify`, all shards are read once and compared with the SHA-256 that the index has of
    them; all processes of a run call this then, and share the reading. Raises `UserError` for a
    shard that differs, or is no shard.
    """

    def __init__(self, folder: Path, index: ShardIndex, verify: bool = True):
        self.folder, self.stored = folder, index
        if verify:
            self._verify()
        unsorted = np.concatenate(
            [np.zeros((0, KEY_BYTES), np.uint8), *(self._keys(shard) for shard in index.shards)]
        )
        self.order = np.argsort(_beginnings(unsorted))  # rows of all shards, sorted by key
        self.keys = unsorted[self.order]
        self.beginnings = _beginnings(self.keys)
        self.starts = np.cumsum([0] + [shard.rows for shard in index.shards])
        self._files: dict[int, safe_open] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # each process opens its own

    def all_keys(self) -> list[bytes]:
        return [key.tobytes() for key in self.keys]

    def row(self, key: bytes) -> dict[str, Tensor] | None:
        """The tensors of a picture as they are stored, [1, ...] each; None if it is not there."""
        row = self._place(key)
        if row is None:
            return None
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        if shard not in self._files:
            self._files[shard] = self._open(self.stored.shards[shard])
        start, file = row - int(self.starts[shard]), self._files[shard]
        return {name: file.get_slice(name)[start : start + 1] for name in self.stored.shapes}

    def _place(self, key: bytes) -> int | None:
        wanted = np.frombuffer(key, np.uint8)
        place = int(np.searchsorted(self.beginnings, _beginnings(wanted[None])[0]))
        while place < len(self.keys) and (self.keys[place, :8] == wanted[:8]).all():
            if (self.keys[place] == wanted).all():
                return int(self.order[place])
            place += 1
        return None

    def _verify(self) -> None:
        own = share(list(self.stored.shards))
        paths = [self.folder / shard.file for shard in own]
        try:
            hashes = in_threads(sha256_of, paths)
            differing = [p for p, s, h in zip(paths, own, hashes, strict=True) if h != s.sha256]
            problems = [
                f"{path} is not what was written (its SHA-256 differs)" for path in differing
            ]
        except OSError as error:
            problems = [f"{error.filename} cannot be read ({error.strerror})"]
        for problem in chain.from_iterable(gather(problems)):
            raise UserError(f"{problem}; {ANEW}")

    def _keys(self, shard: Shard) -> np.ndarray:
        """uint8 [rows, 32] of a shard that is what the index says of it."""
        path, file = self.folder / shard.file, self._open(shard)
        expected_dtype = IN_FILES[self.stored.dtype]
        try:
            slices = {name: file.get_slice(name) for name in self.stored.shapes}
            keys = file.get_tensor("keys")
        except SafetensorError as error:
            what = self.stored.WHAT
            raise UserError(f"{path} is no shard of {what} ({error}); {ANEW}") from error
        for name, shape in self.stored.shapes.items():
            found, dtype = slices[name].get_shape(), slices[name].get_dtype()
            expected = [shard.rows, *shape]
            if found != expected or dtype != expected_dtype:
                raise UserError(
                    f"{path}: {name} are {dtype} of shape {found}, expected "
                    f"{expected_dtype} of shape {expected}; {ANEW}"
                )
        if keys.shape != (shard.rows, KEY_BYTES) or keys.dtype != torch.uint8:
            raise UserError(f"{path}: keys are {keys.dtype} of shape {list(keys.shape)}; {ANEW}")
        return keys.numpy()

    def _open(self, shard: Shard):
        path = self.folder / shard.file
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); {ANEW}") from error


def _beginnings(keys: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each key [N, 32] as a number, to search by."""
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()


def check_decoding(place: Path | str, index: ShardIndex) -> None:
    """Raises `UserError` for tensors of pictures that were read in another way than now."""
    if index.decoding != DECODING:
        raise UserError(
            f"{place} holds {index.WHAT} of pictures as another version of metamorph read them "
            f"(decoding {index.decoding}, now {DECODING}); encode the data anew into another folder"
        )


def other_fit(place: Path | str, index: ShardIndex, fit: str) -> str:
    """Why tensors of pictures that became squares in another way are refused."""
    return (
        f"{place} holds {index.WHAT} of pictures made square by {index.fit} (decoder.fit), and "
        f"this run takes them by {fit}; encode the data anew"
    )
