"""What a file of samples holds: numbered records, each with the images and videos it names.

The formats beside this file say where records lie; `metamorph.data.families` says what conversation
a record stands for.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from metamorph.config.data_keys import Truncated
from metamorph.data.conversation import ROLES, Turn
from metamorph.data.images import Picture, StoredImage, read_file, reason, shorten
from metamorph.data.links import Root, is_clutter
from metamorph.data.video import Video, open_video
from metamorph.errors import SampleError, UserError, printable, shown
from metamorph.tokens import IMAGE_PLACEHOLDER

# A part of a turn that is an image: its type, and under what it may name a file.
IMAGE_PARTS = ("image", "image_url", "input_image")
ADDRESS = re.compile(r"(?:https?|s3|gs|hf|data):")
IMAGE_FILES = ("image", "image_url", "url", "path", "source", "data")

MOST_NAMES = 8  # of fields, in a message
MOST_PICTURES = 1000  # of a sample
PARTS = re.compile(r"[0-9]+|[^0-9]+")  # of a name


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
            raise ValueError(f"expected an object, got {shown(self.values)}")

    def get(self, name: str) -> Any:
        """The value of a field, None where there is none."""
        return self.values.get(self.names.get(name, name))

    def text(self, name: str) -> str:
        """The text of a field. Raises `ValueError` for anything else."""
        return checked_text(self.names.get(name, name), self.get(name))

    def pictures(self, name: str) -> tuple[Picture, ...]:
        """The images that a field names: none, one or a list. `images` says the same as `image`."""
        value = self.get(name)
        if name == "image":
            _, value = self._either("image", "images")
        values = [] if value is None else value if isinstance(value, list) else [value]
        if len(values) > MOST_PICTURES:
            raise ValueError(f"{name}: {len(values)} images, expected at most {MOST_PICTURES}")
        return tuple(self.files.picture(value) for value in values)

    def picture(self, name: str) -> Picture:
        """The one image that a field names. Raises `ValueError` for none or several."""
        pictures = self.pictures(name)
        if len(pictures) != 1:
            raise ValueError(f"{name}: expected one image, got {len(pictures)}")
        return pictures[0]

    def turns(self) -> tuple[Turn, ...]:
        """The field `conversations` in LLaVA's format, or `messages` in OpenAI's."""
        name, written = self._either("conversations", "messages")
        if written is None:
            found = ", ".join(map(shorten, list(self.values)[:MOST_NAMES]))
            raise ValueError(
                f"neither conversations nor messages is there, only {found or 'nothing'}; "
                f"data.fields says where a field has another name"
            )
        if not isinstance(written, list):
            raise ValueError(f"{name}: expected a list, got {shown(written)}")
        return tuple(_turn(f"{name}[{number}]", turn) for number, turn in enumerate(written))

    def _either(self, name: str, other: str) -> tuple[str, Any]:
        """The field that is there of two that say the same, and its value, None without any.
        Raises `ValueError` if they differ: one of them would be left out unnoticed."""
        value, second = self.get(name), self.get(other)
        if value is None:
            return other, second
        if second is not None and second not in (value, [value]):
            raise ValueError(f"{name} and {other} are both there and differ; leave out one")
        return name, value

    @property
    def id(self) -> str:
        written = self.get("id")
        if written is None:
            return self.where
        return printable(shorten(written)) if isinstance(written, str) else shown(written)


def _turn(where: str, written: Any) -> Turn:
    """A turn with `from` and `value`, or `role` and `content`. `ValueError` for anything else."""
    if not isinstance(written, Mapping):
        raise ValueError(f"{where}: expected an object, got {shown(written)}")
    role = written.get("from", written.get("role"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(
            f"{where}: its role is {shown(role)}, expected one of {', '.join(ROLES)} as `from` or "
            f"`role`; leave out turns of others, such as tools"
        )
    key = "value" if "value" in written else "content"
    said = written.get(key)
    if isinstance(said, list):
        parts = [_part(f"{where}.{key}[{number}]", part) for number, part in enumerate(said)]
        return Turn(ROLES[role], "".join(parts))
    return Turn(ROLES[role], checked_text(f"{where}.{key}", said))


def _part(where: str, part: Any) -> str:
    """The text of a part of a turn, `<image>` for an image. `ValueError` for other parts."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return checked_text(f"{where}.text", part.get("text"))
    if kind not in IMAGE_PARTS:
        raise ValueError(f"{where}: expected a part of type text or image, got {shown(part)}")
    if any(part.get(key) is not None for key in IMAGE_FILES):
        raise ValueError(
            f"{where}: images within a turn are not read; name their files in the list `images` "
            f'beside `messages`, in order, and leave {{"type": "image"}} here'
        )
    return IMAGE_PLACEHOLDER


def checked_text(name: str, value: Any) -> str:
    """`value` if it is text that can be encoded, else `ValueError`."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = "half a surrogate pair, as JSON can spell it, is no text"
        raise ValueError(f"{name}: {problem}: {shown(value)}") from None
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
    """Images and videos below a folder, which no name may leave. `follow_links`: see `Root`."""

    folder: Path
    max_pixels: int
    follow_links: bool = False
    truncated: Truncated = "skip"

    @cached_property
    def root(self) -> Root:
        return Root(self.folder, self.follow_links)

    def picture(self, value: Any) -> Picture:
        if not isinstance(value, str):
            raise ValueError(f"image: expected a name or a list of names, got {shown(value)}")
        if ADDRESS.match(value):
            raise ValueError(
                f"image: {shown(value)} is an address, and nothing is downloaded; fetch it and "
                f"give the file's name below {self.folder}"
            )
        read = _Reader(self.root, value)
        return StoredImage(value, read, self.max_pixels, self.truncated)

    def video(self, value: Any, frame_rate: float) -> Video:
        name = checked_text("video", value)
        path = self.root.file(name, "video")
        frames = _frames(path)
        if frames is not None:
            pictures = [self.picture(f"{name}/{frame}") for frame in frames]
            return Video.of_pictures(name, pictures, frame_rate)
        return open_video(name, read_file(path, "video"), self.max_pixels)


def _frames(path: Path) -> list[str] | None:
    """The names of a folder's files in order, None for a file. Raises `SampleError`."""
    try:
        if not path.is_dir():
            return None
        names = (entry.name for entry in path.iterdir() if not entry.is_dir())
        return sorted((name for name in names if not is_clutter(name)), key=natural_order)
    except OSError as error:  # a name that is too long, a folder that may not be read
        message = f"video {shown(str(path))} cannot be read: {reason(error)}"
        raise SampleError("missing video", message) from error


@dataclass(frozen=True)
class _Reader:
    """Reads one file below a folder when called."""

    root: Root
    name: str

    def __call__(self) -> bytes:
        return read_file(self.root.file(self.name))


def natural_order(name: str) -> tuple[list, str]:
    """A key to sort paths by, as a person counts: folder by folder, `2.jpg` before `10.jpg`."""
    steps = [
        [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in PARTS.findall(step)]
        for step in name.casefold().split(os.sep)
    ]
    return steps, name


def files_of(path: Path, suffix: str, follow_links: bool = False) -> list[Path]:
    """The files that `data.path` stands for, in order: one, those of a folder, or a pattern.

    A file or folder of that very name is meant before any pattern. Raises `UserError` if there
    are none, or if one is a link that leads out of the folder.
    """
    try:
        if path.is_file():
            return [path]
        folder, found = path, []
        if path.is_dir():
            found = [file for file in path.iterdir() if file.name.lower().endswith(suffix)]
        elif any(sign in path.name for sign in "*?["):
            folder, found = path.parent, [*path.parent.glob(path.name)]
        root = Root(folder, follow_links)
        files = sorted(file for file in found if not is_clutter(file.name) and not file.is_dir())
        for file in files:
            root.file(file.name, "file")
    except SampleError as error:
        raise UserError(f"data.path: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"data.path: {path} cannot be read: {reason(error)}") from error
    if not files:
        problem = f"the folder holds no {suffix} file" if path.is_dir() else "there is no such file"
        raise UserError(f"data.path: {path}: {problem}")
    return files
