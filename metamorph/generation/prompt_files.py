"""Many prompts from a file: a JSON object a line, all of them checked before a model is loaded.

{"id": "cat", "prompt": "<image>What is it?", "image": "cat.png", "temperature": 0.7}
{"messages": [{"role": "user", "content": "Hello"}], "seed": 3}
"""

import base64
import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from metamorph.config.data_keys import MAX_PIXELS
from metamorph.data.conversation import ROLES, Sample, Turn, check_conversation
from metamorph.data.formats.records import ADDRESS, checked_text
from metamorph.data.formats.text import read_object
from metamorph.data.images import StoredImage, decode_image, read_file
from metamorph.data.links import Root
from metamorph.errors import LONGEST_VALUE, SampleError, UserError, shown, within
from metamorph.folders import check_file, check_folder
from metamorph.generation.flat_settings import flat, replaced
from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Drawing, Message, Part, placed
from metamorph.generation.picture_files import drawing_of
from metamorph.generation.settings import AnswerSettings
from metamorph.tokens import IMAGE_PLACEHOLDER

CONTENT_KEYS = ("id", "prompt", "messages", "image", "images")
Content = tuple[str | StoredImage, ...]


@dataclass(frozen=True)
class WrittenPrompt:
    """A conversation that waits for an answer, as a line has it: its pictures are not open yet."""

    id: str
    turns: tuple[tuple[str, Content], ...] = field(repr=False)  # role and content
    settings: AnswerSettings

    def messages(self, tokens: int, width: int) -> tuple[Message, ...]:
        """The conversation with its pictures opened. One of a turn of the assistant that carries
        its features [tokens, width] is a `Drawing`. Raises `SampleError` or `UserError`."""
        return tuple(
            Message(role, tuple(_opened(part, role, tokens, width) for part in content))
            for role, content in self.turns
        )


@dataclass(frozen=True)
class PromptFile:
    """`digest` is the SHA-256 of the file's content, `image_root` where its pictures lie."""

    path: Path
    digest: str
    image_root: Path
    prompts: tuple[WrittenPrompt, ...]


def read_prompts(
    path: Path, defaults: AnswerSettings, *, system: str = "", image_root: Path | None = None
) -> PromptFile:
    """Reads and checks all lines; those that are blank are passed over.

    `defaults` hold where a line does not say otherwise; `system` is the system turn of all
    conversations that have none. Pictures lie below `image_root`, by default the folder of the
    file, and no name may leave it. Raises `UserError` that names the first bad line.
    """
    content = check_file(path, "a file of prompts, a JSON object a line").read_bytes()
    root = Root(
        check_folder(path.parent if image_root is None else image_root, "--image-root"),
        way_out="--image-root with a folder that holds both",
    )
    prompts: dict[str, WrittenPrompt] = {}
    lines: dict[str, int] = {}
    problems = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            prompt = _read_line(line, str(number), defaults, system, root)
            if prompt.id in prompts:
                raise ValueError(f"id {shown(prompt.id)} is also that of line {lines[prompt.id]}")
            prompts[prompt.id], lines[prompt.id] = prompt, number
        except (ValueError, SampleError, UserError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = f" (bad lines in all: {len(problems)})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not prompts:
        raise UserError(f"{path} holds no prompts, expected a JSON object a line")
    digest = hashlib.sha256(content).hexdigest()
    return PromptFile(path, digest, root.resolved, tuple(prompts.values()))


def _read_line(
    line: bytes, default_id: str, defaults: AnswerSettings, system: str, root: Root
) -> WrittenPrompt:
    """Raises `ValueError`, `SampleError` or `UserError` for a line that cannot be used."""
    values = read_object(line, "the line")
    settings = tuple(flat(defaults))
    _check_keys(values, (*CONTENT_KEYS, *settings))
    values = {key: value for key, value in values.items() if value is not None}
    name = values.get("id", default_id)
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not checked_text("id", name):
        raise ValueError("id: expected text, got an empty one")
    turns = _turns(values, root)
    if system and turns[0][0] != SYSTEM:
        turns = [(SYSTEM, (checked_text("--system", system),)), *turns]
    _check_turns(name, turns)
    changes = {key: values[key] for key in settings if key in values}
    return WrittenPrompt(name, tuple(turns), replaced(defaults, changes))


def _check_keys(values: dict, known: Sequence[str], where: str = "") -> None:
    for key in values:
        if key not in known:
            closest = difflib.get_close_matches(key[:LONGEST_VALUE], known, n=1, cutoff=0)[0]
            raise ValueError(f"{where}unknown key {shown(key)}; the nearest is '{closest}'")


def _turns(values: dict[str, Any], root: Root) -> list[tuple[str, Content]]:
    if ("prompt" in values) == ("messages" in values):
        found = "both are" if "prompt" in values else "neither is"
        raise ValueError(f"expected prompt or messages, {found} there")
    named = [key for key in ("image", "images") if key in values]
    if len(named) == 2:
        raise ValueError("image and images are both there; leave out one")
    if "prompt" in values:
        pictures = values[named[0]] if named else []
        pictures = pictures if isinstance(pictures, list) else [pictures]
        text = checked_text("prompt", values["prompt"])
        return [(USER, placed(text, [_picture(named[0], name, root) for name in pictures]))]
    if named:
        raise ValueError(
            f"{named[0]}: pictures of messages stand in their content, each as "
            f'{{"type": "image_url", "image_url": {{"url": "FILE"}}}}'
        )
    written = values["messages"]
    if not isinstance(written, list) or not written:
        raise ValueError(f"messages: expected a list of turns, got {shown(written)}")
    return [_turn(f"messages[{number}]", turn, root) for number, turn in enumerate(written)]


def _turn(where: str, written: Any, root: Root) -> tuple[str, Content]:
    if not isinstance(written, dict):
        raise ValueError(f"{where}: expected an object, got {shown(written)}")
    _check_keys(written, ("role", "content"), f"{where}: ")
    role, content = written.get("role"), written.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}.role: expected one of {', '.join(ROLES)}, got {shown(role)}")
    if not isinstance(content, list):
        return ROLES[role], (checked_text(f"{where}.content", content),)
    parts = [_part(f"{where}.content[{n}]", part, root) for n, part in enumerate(content)]
    if ROLES[role] == SYSTEM and any(isinstance(part, StoredImage) for part in parts):
        raise ValueError(f"{where}.content: a system turn has no pictures")
    return ROLES[role], tuple(parts)


def _part(where: str, part: Any, root: Root) -> str | StoredImage:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        _check_keys(part, ("type", "text"), f"{where}: ")
        return checked_text(f"{where}.text", part.get("text"))
    if kind != "image_url":
        raise ValueError(f"{where}: expected a part of type text or image_url, got {shown(part)}")
    _check_keys(part, ("type", "image_url"), f"{where}: ")
    where, image = f"{where}.image_url", part.get("image_url")
    if isinstance(image, dict):
        _check_keys(image, ("url", "detail"), f"{where}: ")  # all pictures have the same detail
        where, image = f"{where}.url", image.get("url")
    return _picture(where, image, root)


def _picture(where: str, value: Any, root: Root) -> StoredImage:
    """One that lies below the root, or in the line itself. It is opened when its turn comes."""
    name = checked_text(where, value)
    if name.startswith("data:"):
        content = _content_of(where, name)
        return StoredImage(where, lambda: content, MAX_PIXELS)
    if ADDRESS.match(name):
        raise ValueError(
            f"{where}: {shown(name)} is an address, and nothing is downloaded; fetch it and give "
            f"the file's name below {root.folder}"
        )
    with within(where):
        path = check_file(root.file(name), "a picture")
    return StoredImage(name, partial(read_file, path), MAX_PIXELS)


def _content_of(where: str, address: str) -> bytes:
    """The bytes of a data URL (RFC 2397) in base64."""
    head, _, written = address.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(written, validate=True)
    except ValueError as error:
        expected = "data:image/png;base64, and the file's bytes in base64"
        raise ValueError(f"{where}: {shown(address)} is no {expected}") from error


def _check_turns(name: str, turns: Sequence[tuple[str, Content]]) -> None:
    """Raises unless user and assistant take turns, the user first and last."""
    texts = (
        (role, "".join(part for part in content if isinstance(part, str)))
        for role, content in turns
    )
    # What counts here are turns; `<image>` in the text of messages stands for nothing.
    plain = tuple(Turn(role, text.replace(IMAGE_PLACEHOLDER, "")) for role, text in texts)
    check_conversation(Sample(name, plain))
    if turns[-1][0] != USER:
        raise ValueError(f"messages: the last turn is from {turns[-1][0]}, expected user")


def _opened(part: str | StoredImage, role: str, tokens: int, width: int) -> Part:
    if isinstance(part, str):
        return part
    if role != ASSISTANT:
        return part.open()
    data = part.read()
    with within(f"image {part.name}"):
        drawing: Drawing | None = drawing_of(data, tokens, width, part.max_pixels)
    return decode_image(data, part.name, part.max_pixels) if drawing is None else drawing
