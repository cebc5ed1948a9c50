"""Records as WebDataset tars: files of one sample stand together and share a name up to its first
dot. Nothing is ever extracted: the headers are read once, and bytes are read in place.

`000.jpg`, `000.txt` (a caption) and `000.json` (further fields) make one record. Its images
are called by what follows the first dot; `000.edit_prompt.txt` is the field `edit_prompt`.
"""

import json
import tarfile
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metamorph.data.formats.records import Record, checked_text, files_of
from metamorph.data.images import LARGEST_FILE, Picture, StoredImage, shorten
from metamorph.data.video import DEMUXERS, Video, open_video
from metamorph.errors import SampleError, UserError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
FIELDS_IN_NAMES = ("original_image", "edited_image")  # as in 000.edited_image.jpg
TAR_BLOCK = 512


class WebDataset:
    """Samples of uncompressed tars, by offset: about 20 bytes of memory a file in them."""

    blocks = None

    def __init__(
        self, path: Path, max_pixels: int, names: Mapping[str, str], follow_links: bool = False
    ):
        self.shards = files_of(path, ".tar", follow_links)
        self.max_pixels, self.names = max_pixels, names
        self.endings: list[str] = []  # what follows the first dot, each once
        self.unusable: dict[int, str] = {}  # sample: why a file of it is refused
        numbers: dict[str, int] = {}  # ending: its place in `endings`
        offsets, sizes, endings = array("q"), array("q"), array("i")  # of every file
        firsts, shards = array("q"), array("i")  # of every sample
        for shard, file in enumerate(self.shards):
            stem = None
            for member in _members(file):
                key, ending, problem = _split(member, file)
                if key != stem:
                    stem = key
                    firsts.append(len(offsets))
                    shards.append(shard)
                if problem:
                    self.unusable.setdefault(len(firsts) - 1, problem)
                number = numbers.setdefault(ending, len(self.endings))
                if number == len(self.endings):
                    self.endings.append(ending)
                offsets.append(member.offset_data)
                sizes.append(member.size)
                endings.append(number)
        if not firsts:
            raise UserError(f"data.path: {path} holds no samples")
        firsts.append(len(offsets))
        self.offsets, self.sizes = np.array(offsets), np.array(sizes)
        self.ending_numbers = np.array(endings)
        self.firsts, self.sample_shards = np.array(firsts), np.array(shards)

    def __len__(self) -> int:
        return len(self.sample_shards)

    def where(self, position: int) -> str:
        shard = self.sample_shards[position]
        number = position - int(np.searchsorted(self.sample_shards, shard))
        return f"{self.shards[shard]} sample {number}"

    def record(self, position: int) -> Record:
        if position in self.unusable:
            raise SampleError("unsafe tar member", self.unusable[position])
        files = {
            self.endings[self.ending_numbers[i]]: (int(self.offsets[i]), int(self.sizes[i]))
            for i in range(self.firsts[position], self.firsts[position + 1])
        }
        members = Members(self.shards[self.sample_shards[position]], files, self.max_pixels)
        values: dict[str, Any] = {}
        if "json" in files:
            values = json.loads(members.read("json"))
            if not isinstance(values, dict):
                raise ValueError(f"json: expected an object, got {shorten(repr(values))}")
        images = [name for name in files if name.lower().endswith(IMAGE_ENDINGS)]
        values.setdefault("image", images)
        for name in files:
            field, _, kind = name.rpartition(".")
            if kind == "txt":
                values.setdefault(field or "caption", members.read(name).decode())
            elif field in FIELDS_IN_NAMES or f".{kind}" in DEMUXERS:
                values.setdefault(field or "video", name)
        return Record(self.where(position), values, members, self.names)


@dataclass(frozen=True)
class Members:
    """The files of one sample, by what follows the first dot of their names."""

    shard: Path
    files: Mapping[str, tuple[int, int]]  # name: offset and size
    max_pixels: int

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `SampleError` if there is none, or the tar ends early."""
        if name not in self.files:
            message = f"no file .{shorten(name)} among {sorted(self.files)}"
            raise SampleError("missing image", message)
        offset, size = self.files[name]
        with self.shard.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise SampleError("truncated tar", f"the tar ends inside .{name}")
        return data

    def picture(self, value: Any) -> Picture:
        name = checked_text("image", value)
        return StoredImage(f".{shorten(name)}", _MemberReader(self, name), self.max_pixels)

    def video(self, value: Any, frame_rate: float) -> Video:
        name = checked_text("video", value)
        return open_video(f"video.{name}", self.read(name), self.max_pixels)


@dataclass(frozen=True)
class _MemberReader:
    members: Members
    name: str

    def __call__(self) -> bytes:
        return self.members.read(self.name)


def _members(path: Path):
    """The headers of a tar in order. Raises `UserError` for what is no whole, plain tar."""
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:
                if not member.isdir():
                    yield member
                # Else every header stays in memory.
                tar.members.clear()  # pyrefly: ignore[missing-attribute]  not in its stub
            file.seek(tar.offset)
            if file.read(TAR_BLOCK).strip(b"\0"):  # tarfile takes a broken header for the end
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"data.path: {path} is not an uncompressed tar: {error}") from error


def _split(member: tarfile.TarInfo, shard: Path) -> tuple[str, str, str]:
    """The name shared by a sample's files, what follows it, and why the file is refused, if so."""
    path = PurePosixPath(member.name)
    stem, _, ending = path.name.partition(".")
    shown = f"{shard}: member {shorten(member.name)!r}"
    problem = ""
    if not member.isfile():
        problem = f"{shown} is not a plain file"
    elif path.is_absolute() or ".." in path.parts:
        problem = f"{shown} leaves the tar"
    elif member.size > LARGEST_FILE:
        problem = f"{shown} is larger than 1 GiB"
    return str(path.parent / stem), ending, problem
