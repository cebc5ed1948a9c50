"""A remote tar as `WebDataset` reads it: by its members, from a local copy."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from metamorph.config import DataConfig
from metamorph.data.formats.tar import Member, members
from metamorph.data.remote.addresses import RemoteFile, tars_at
from metamorph.data.remote.cache import GIGA, ShardCache
from metamorph.disk import write_text

INDEX = ".members-1.json"  # another number for another form


@dataclass(frozen=True)
class RemoteShard:
    """One tar. Its members are walked once, and kept when the copy is removed."""

    file: RemoteFile
    cache: ShardCache

    def __str__(self) -> str:
        return self.file.address

    def open(self, mode: str = "rb") -> BinaryIO:
        """The local copy. Raises as `ShardCache.open`."""
        return self.cache.open(self.file)

    def members(self) -> list[Member]:
        """As `metamorph.data.formats.tar.members` of the copy."""
        path = self.cache.path_of(self.file, INDEX)
        try:
            return [_member(*entry) for entry in json.loads(path.read_text("utf-8"))]
        except (OSError, ValueError, TypeError):  # there is none, or it is damaged
            found = list(members(self))
            entries = [[one.name, one.offset, one.size, one.problem] for one in found]
            write_text(path, json.dumps(entries))
            return found


def _member(name: str, offset: int, size: int, problem: list[str] | None) -> Member:
    if type(offset) is not int or type(size) is not int or min(offset, size) < 0:
        raise ValueError("no member of a tar")
    return Member(name, offset, size, None if problem is None else (problem[0], problem[1]))


def open_shards(address: str, data: DataConfig) -> list[RemoteShard]:
    """The tars of an address, with the cache of a run. Raises `UserError` and `Halted`."""
    folder = Path(data.cache) if data.cache else default_folder()
    cache = ShardCache(folder, int(data.cache_gigabytes * GIGA))
    return [RemoteShard(file, cache) for file in tars_at(address)]


def default_folder() -> Path:
    """Where copies lie if the run file does not say it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "metamorph" / "tars"
