"""Writing tensors of pictures to a folder of shards, which appear whole or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from metamorph import lock
from metamorph.data.shards import (
    INDEX,
    KEY_BYTES,
    Index,
    Shard,
    ShardFolder,
    check_decoding,
    read_index,
)
from metamorph.disk import atomic_path, sha256_of
from metamorph.errors import UserError, within
from metamorph.model.weights import write_json


@dataclass
class ShardWriter(Generic[Index]):
    """Gathers tensors of pictures and writes a shard whenever `shard_rows` are there."""

    folder: Path
    index: Index
    shard_rows: int
    keys: list[bytes] = field(default_factory=list)
    rows: list[dict[str, Tensor]] = field(default_factory=list)  # as stored, of a picture each
    errors: list[Tensor] = field(default_factory=list)  # of a picture each

    def add(self, keys: Sequence[bytes], tensors: dict[str, Tensor], errors: Tensor) -> None:
        """`tensors` as stored and `errors`, [len(keys), ...] each."""
        columns = zip(*(tensor.unbind() for tensor in tensors.values()), strict=True)
        self.rows += [dict(zip(tensors, column, strict=True)) for column in columns]
        self.keys += keys
        self.errors += errors.unbind()
        while len(self.keys) >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Writes what is there, at most `shard_rows`, and lists it in the index."""
        rows = min(len(self.keys), self.shard_rows)
        if not rows:
            return
        taken = {shard.file for shard in self.index.shards}
        names = (f"shard-{number:05d}.safetensors" for number in range(len(taken) + 1))
        name = next(name for name in names if name not in taken)
        keys = np.frombuffer(b"".join(self.keys[:rows]), np.uint8).reshape(rows, KEY_BYTES)
        tensors = {
            name: torch.stack([row[name] for row in self.rows[:rows]]) for name in self.rows[0]
        }
        with atomic_path(self.folder / name) as temporary:
            save_file(tensors | {"keys": torch.from_numpy(keys.copy())}, temporary)
            digest = sha256_of(temporary)
        errors = torch.stack(self.errors[:rows])
        shard = Shard(name, rows, digest, errors.mean().item(), errors.max().item())
        self.index = replace(self.index, shards=(*self.index.shards, shard))
        write_json(self.folder / INDEX, self.index.to_dict())
        del self.keys[:rows], self.rows[:rows], self.errors[:rows]


def resume(folder: Path, wanted: Index, facts: Sequence[str]) -> tuple[Index, set[bytes]]:
    """The index to go on with, whose shards are whole, and the keys that they hold.

    Raises `UserError` if the folder holds something else, or differs in one of `facts`, fields of
    its index.
    """
    found: Index = wanted
    keys: set[bytes] = set()
    if (folder / INDEX).exists():
        found = read_index(type(wanted), folder)
        with within("--output"):
            check_decoding(folder, found)
        for name in facts:
            if getattr(found, name) != getattr(wanted, name):
                raise UserError(
                    f"--output: {folder} holds {found.WHAT} of {name} {getattr(found, name)}, "
                    f"not {getattr(wanted, name)}; give another folder"
                )
        found = replace(found, shards=tuple(s for s in found.shards if _is_whole(folder, s)))
        keys = set(ShardFolder(folder, found, verify=False).all_keys())
    elif folder.exists() and any(path.name != lock.FILE for path in folder.iterdir()):
        raise UserError(f"--output: {folder} holds something else, expected a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / INDEX, found.to_dict())
    return found, keys


def broken_shards(index_class: type[Index], folder: Path) -> list[str]:
    """The shards of a folder whose content is not what the index says."""
    index = read_index(index_class, folder)
    return [shard.file for shard in index.shards if not _is_whole(folder, shard)]


def _is_whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and sha256_of(path) == shard.sha256
