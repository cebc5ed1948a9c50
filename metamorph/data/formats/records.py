"""What a file of samples holds: numbered records, each with the images and videos it names.

The formats beside this file say where records lie; `metamorph.data.families` says what conversation
a record stands for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from metamorph.data.conversation import ROLES, Turn
from metamorph.data.images import Picture, StoredImage, read_file, resolve_inside, shorten
from metamorph.data.video import Video, open_video
from metamorph.errors import UserError


class Files(Protocol):
    """Where the images and videos of a record lie. `SampleError` if one cannot be used."""

    def picture(self, value: Any) -> Picture: ...

    def video(self, value: Any, frame_rate: float) -> Video: ...


@dataclass(frozen=True)
class Record:
    """One sample as written. `names` maps the documented field names to those of the file."""

    where: str  # file and line, for messages
    values: Mapping[str, Any]
    files: Files
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.values, Mapping):
            raise ValueError(f"expected an object, got {shorten(repr(self.values))}")

    def get(self, name: str) -> Any:
        """The value of a field, None where there is none."""
        return self.values.get(self.names.get(name, name))

    def text(self, name: str) -> str:
        """The text of a field. Raises `ValueError` for anything else."""
        return checked_text(self.names.get(name, name), self.get(name))

    def pictures(self, name: str) -> tuple[Picture, ...]:
        """The images that a field names: none, one or a list."""
        value = self.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        return tuple(self.files.picture(value) for value in values)

    def picture(self, name: str) -> Picture:
        """The one image that a field names. Raises `ValueError` for none or several."""
        pictures = self.pictures(name)
        if len(pictures) != 1:
            raise ValueError(f"{name}: expected one image, got {len(pictures)}")
        return pictures[0]

    def turns(self) -> tuple[Turn, ...]:
        """The field `conversations` in LLaVA's format."""
        written = self.get("conversations")
        if not isinstance(written, list):
            raise ValueError(f"conversations: expected a list, got {shorten(repr(written))}")
        return tuple(Turn(ROLES[t["from"]], checked_text("value", t["value"])) for t in written)

    @property
    def id(self) -> str:
        written = self.get("id")
        return self.where if written is None else shorten(str(written))


def checked_text(name: str, value: Any) -> str:
    """`value` if it is text that can be encoded, else `ValueError`."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {shorten(repr(value))}")
    value.encode()  # half a surrogate pair, which JSON can spell, is a ValueError here
    return value


class Records(Protocol):
    """Records of one or several files, by position. No state: it may be used in any order."""

    @property
    def blocks(self) -> list[int] | None:
        """Sizes of the runs that are best read together, if there are any."""

    def __len__(self) -> int: ...

    def where(self, position: int) -> str:
        """File and line, for messages."""

    def record(self, position: int) -> Record:
        """Raises `ValueError` or `SampleError` for one that cannot be read."""


@dataclass(frozen=True)
class Folder:
    """Images and videos below a folder, which no name may leave."""

    root: Path
    max_pixels: int

    def picture(self, value: Any) -> Picture:
        if not isinstance(value, str):
            problem = f"expected a name or a list of names, got {shorten(repr(value))}"
            raise ValueError(f"image: {problem}")
        return StoredImage(value, _Reader(self.root, value), self.max_pixels)

    def video(self, value: Any, frame_rate: float) -> Video:
        name = checked_text("video", value)
        path = resolve_inside(self.root, name)
        if path.is_dir():
            frames = sorted(entry.name for entry in path.iterdir() if not entry.is_dir())
            pictures = [self.picture(f"{name}/{frame}") for frame in frames]
            return Video.of_pictures(name, pictures, frame_rate)
        return open_video(name, read_file(path, "video"), self.max_pixels)


@dataclass(frozen=True)
class _Reader:
    """Reads one file below a folder when called."""

    root: Path
    name: str

    def __call__(self) -> bytes:
        return read_file(resolve_inside(self.root, self.name))


def files_of(path: Path, suffix: str) -> list[Path]:
    """The files that `data.path` stands for, in order: one, those of a folder, or a pattern.

    Raises `UserError` if there are none.
    """
    if path.is_dir():
        found = sorted(path.glob(f"*{suffix}"))
    elif any(sign in path.name for sign in "*?["):
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise UserError(f"data.path: {path} holds no {suffix} file")
    return found
