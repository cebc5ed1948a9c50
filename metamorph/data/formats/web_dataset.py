"""Records as WebDataset tars: files of one sample stand together and share a name up to its first
dot. Nothing is ever extracted: the headers are read once, and bytes are read in place.

`000.jpg`, `000.txt` (a caption) and `000.json` (further fields) make one record. Its images
are called by what follows the first dot; `000.edit_prompt.txt` is the field `edit_prompt`.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metamorph.config.data_keys import Truncated
from metamorph.data.formats.records import Record, checked_text, files_of
from metamorph.data.formats.tar import members
from metamorph.data.formats.text import read_object, read_text
from metamorph.data.images import Picture, StoredImage, shorten
from metamorph.data.links import is_clutter
from metamorph.data.remote.shards import RemoteShard
from metamorph.data.video import DEMUXERS, Video, open_video
from metamorph.errors import SampleError, UserError, shown

IMAGE_ENDINGS = tuple("jpg jpeg jpe jfif mpo png webp gif bmp tif tiff".split())
FIELDS_IN_NAMES = ("original_image", "edited_image")  # as in 000.edited_image.jpg


class WebDataset:
    """Samples of uncompressed tars, those of a path or remote ones, by offset: about 20 bytes of
    memory a file in them."""

    def __init__(
        self,
        path: Path | Sequence[RemoteShard],
        max_pixels: int,
        names: Mapping[str, str],
        follow_links: bool = False,
        truncated: Truncated = "skip",
    ):
        is_local = isinstance(path, Path)
        self.shards: Sequence[Path | RemoteShard] = (
            files_of(path, ".tar", follow_links) if is_local else path
        )
        self.max_pixels, self.truncated, self.names = max_pixels, truncated, names
        self.endings: list[str] = []  # what follows the first dot, each once
        self.unusable: dict[int, tuple[str, str]] = {}  # sample: cause and reason
        numbers: dict[str, int] = {}  # ending: its place in `endings`
        offsets, sizes, endings = array("q"), array("q"), array("i")  # of every file
        firsts, shards = array("q"), array("i")  # of every sample
        for shard, file in enumerate(self.shards):
            stem, held = None, set()  # of the sample that is being read: its name, its endings
            for member in file.members() if isinstance(file, RemoteShard) else members(file):
                if any(map(is_clutter, PurePosixPath(member.name).parts)):
                    continue
                key, ending = _split(member.name)
                if key != stem:
                    stem, held = key, set()
                    firsts.append(len(offsets))
                    shards.append(shard)
                number = numbers.setdefault(ending, len(self.endings))
                if number == len(self.endings):
                    self.endings.append(ending)
                problem = member.problem
                if number in held and problem is None:
                    twice = f"two files of the name {shown(member.name)} in one sample"
                    problem = "duplicate tar member", twice
                if problem is not None:
                    self.unusable.setdefault(len(firsts) - 1, problem)
                held.add(number)
                offsets.append(member.offset)
                sizes.append(member.size)
                endings.append(number)
        if not firsts:
            raise UserError(f"data.path: {path if is_local else path[0]} holds no samples")
        firsts.append(len(offsets))
        self.offsets, self.sizes = np.array(offsets), np.array(sizes)
        self.ending_numbers = np.array(endings)
        self.firsts, self.sample_shards = np.array(firsts), np.array(shards)
        # Of remote tars one is gone through before the next: another may have to be fetched.
        in_shards = np.bincount(self.sample_shards).tolist()
        self.blocks = None if is_local else [count for count in in_shards if count]

    def __len__(self) -> int:
        return len(self.sample_shards)

    def where(self, position: int) -> str:
        shard = self.sample_shards[position]
        number = position - int(np.searchsorted(self.sample_shards, shard))
        return f"{self.shards[shard]} sample {number}"

    def record(self, position: int) -> Record:
        if position in self.unusable:
            raise SampleError(*self.unusable[position])
        files = {
            self.endings[self.ending_numbers[i]]: (int(self.offsets[i]), int(self.sizes[i]))
            for i in range(self.firsts[position], self.firsts[position + 1])
        }
        shard = self.shards[self.sample_shards[position]]
        held = Members(shard, files, self.max_pixels, self.truncated)
        values: dict[str, Any] = {}
        if "json" in files:
            values = read_object(held.read("json"), ".json")
        images = [name for name in files if name.rpartition(".")[2] in IMAGE_ENDINGS]
        values.setdefault("image", images)
        for name in files:
            field, _, kind = name.rpartition(".")
            if kind == "txt":
                values.setdefault(
                    field or "caption", read_text(held.read(name), f".{shorten(name)}")
                )
            elif field in FIELDS_IN_NAMES or f".{kind}" in DEMUXERS:
                values.setdefault(field or "video", name)
        return Record(self.where(position), values, held, self.names)


@dataclass(frozen=True)
class Members:
    """The files of one sample, by what follows the first dot of their names."""

    shard: Path | RemoteShard
    files: Mapping[str, tuple[int, int]]  # name: offset and size
    max_pixels: int
    truncated: Truncated

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `SampleError` if there is none, or the tar ends early."""
        place = self.files.get(_lower_kind(name))
        if place is None:
            message = f"no file named {shown(name)} among {shown(sorted(self.files))}"
            raise SampleError("missing image", message)
        offset, size = place
        with self.shard.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise SampleError("truncated tar", f"the tar ends inside .{shorten(name)}")
        return data

    def picture(self, value: Any) -> Picture:
        name = checked_text("image", value)
        read = _MemberReader(self, name)
        return StoredImage(f".{shorten(name)}", read, self.max_pixels, self.truncated)

    def video(self, value: Any, frame_rate: float) -> Video:
        name = checked_text("video", value)
        return open_video(f"video.{name}", self.read(name), self.max_pixels)


@dataclass(frozen=True)
class _MemberReader:
    members: Members
    name: str

    def __call__(self) -> bytes:
        return self.members.read(self.name)


def _split(name: str) -> tuple[str, str]:
    """The name shared by a sample's files, and what follows it: `a/000` and `left.jpg`."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.parent / stem), _lower_kind(ending)


def _lower_kind(ending: str) -> str:
    """`left.JPG` as `left.jpg`: cameras write capitals."""
    field, dot, kind = ending.rpartition(".")
    return f"{field}{dot}{kind.lower()}"
