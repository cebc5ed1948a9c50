"""A conversation as files: one line of JSON, and its pictures as PNGs beside it.

The line is a record with OpenAI's `messages` and a list `images`, as `docs/data.md` describes
them, so that a saved conversation can be trained on. A picture of the model holds its features,
too: it is read again as what the model predicted.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from metamorph.config.data_keys import MAX_PIXELS
from metamorph.data.conversation import ROLES
from metamorph.data.formats.records import MOST_PICTURES, checked_text
from metamorph.data.formats.text import LONGEST_RECORD, read_object
from metamorph.data.images import decode_image, read_file
from metamorph.data.links import Root
from metamorph.disk import atomic_path, write_text
from metamorph.errors import SampleError, UserError, shown, within
from metamorph.folders import check_file
from metamorph.generation.messages import ASSISTANT, Drawing, Message, Part
from metamorph.generation.picture_files import drawing_of, png_bytes

# In place of what no decoder drew: a file needs pixels to hold features.
NOT_DRAWN = Image.new("RGB", (1, 1))


def save(path: Path, messages: tuple[Message, ...], *, replace: bool = False) -> None:
    """Writes all turns to `path`, their pictures to `NAME-HASH.png` beside it.

    The JSON comes last, and whole: what was there before is good until then. Raises `UserError` if
    something has its name, unless it is a file and to be replaced, and `OSError`.
    """
    if path.exists() and not (replace and path.is_file()):
        raise UserError(f"{path} exists, expected the name of a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    images: list[str] = []
    written = []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                continue
            images.append(_write_picture(path, part))
            content.append({"type": "image"})
            if isinstance(part, Drawing) and part.picture is None:
                content[-1]["drawn"] = False
        written.append({"role": message.role, "content": content})
    record = {"messages": written, "images": images}
    write_text(path, json.dumps(record, ensure_ascii=False) + "\n")


def _write_picture(path: Path, part: Image.Image | Drawing) -> str:
    """The name of the file that holds the picture: equal content has the same."""
    if isinstance(part, Drawing):
        content = png_bytes(Drawing(part.features, part.picture or NOT_DRAWN))
    else:
        file = io.BytesIO()
        part.convert("RGB").save(file, "PNG")
        content = file.getvalue()
    name = f"{path.stem}-{hashlib.sha256(content).hexdigest()[:16]}.png"
    place = path.with_name(name)
    if not place.exists():
        with atomic_path(place) as temporary:
            temporary.write_bytes(content)
    elif place.read_bytes() != content:
        raise UserError(f"{place} exists and holds something else, expected no file of that name")
    return name


def load(path: Path, tokens: int, width: int) -> tuple[Message, ...]:
    """The turns of a file that `save` wrote, or somebody else in its format.

    `tokens` and `width` are those of the model that shall go on, [tokens, C] a picture. A picture
    of the assistant without features is read from its pixels. Raises `UserError`.
    """
    with check_file(path, "a saved conversation").open("rb") as file:
        content = file.read(LONGEST_RECORD + 1)
    with within(path):
        try:
            record = read_object(content, "the conversation")
            turns, names = record.get("messages"), record.get("images", [])
            if not isinstance(turns, list) or not isinstance(names, list):
                raise ValueError("expected lists `messages` and `images`")
            if len(names) > MOST_PICTURES:
                raise ValueError(f"{len(names)} images, expected at most {MOST_PICTURES}")
            pictures = _Pictures(Root(path.parent), names, tokens, width)
            messages = tuple(_message(f"messages[{n}]", t, pictures) for n, t in enumerate(turns))
            pictures.check_all_taken()
        except (ValueError, SampleError) as error:
            raise UserError(str(error)) from error
    return messages


class _Pictures:
    """The files of a record, opened one by one in the order of its turns."""

    def __init__(self, folder: Root, names: list, tokens: int, width: int):
        self.folder, self.names = folder, names
        self.tokens, self.width = tokens, width
        self.taken = 0

    def next(self, role: str, drawn: bool) -> Image.Image | Drawing:
        if self.taken == len(self.names):
            raise ValueError(f"more images in its messages than the {len(self.names)} of `images`")
        name = self.names[self.taken]
        self.taken += 1
        if not isinstance(name, str) or not name:
            raise ValueError(f"images: expected names of files, got {shown(name)}")
        content = read_file(self.folder.file(name))
        if role == ASSISTANT:
            drawing = drawing_of(content, self.tokens, self.width, MAX_PIXELS)
            if drawing is not None:
                return drawing if drawn else Drawing(drawing.features)
        return decode_image(content, name, MAX_PIXELS)

    def check_all_taken(self) -> None:
        if self.taken < len(self.names):
            raise ValueError(
                f"{len(self.names)} images, of which only {self.taken} stand in its messages"
            )


def _message(where: str, turn, pictures: _Pictures) -> Message:
    role = turn.get("role") if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: expected an object with a role, got {shown(turn)}")
    content = turn.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError(f"{where}.content: expected text or a list, got {shown(content)}")
    parts: list[Part] = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            parts.append(checked_text(f"{where}.content[{number}].text", part.get("text")))
        elif kind == "image":
            parts.append(pictures.next(ROLES[role], part.get("drawn") is not False))
        else:
            raise ValueError(
                f"{where}.content[{number}]: expected a part of type text or image, "
                f"got {shown(part)}"
            )
    return Message(ROLES[role], tuple(parts))
