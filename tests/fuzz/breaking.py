"""Ways to break bytes, JSON and files. All chance comes from the `random.Random` that is given."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

INTERESTING = (0, 1, 2, 4, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def broken_bytes(chance: Random, data: bytes) -> bytes:
    """Between one and eight changes: bits, bytes, numbers, runs cut out, doubled or moved."""
    broken = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not broken:
            return b""
        _break_once(chance, broken)
    return bytes(broken)


def _break_once(chance: Random, data: bytearray) -> None:
    # Headers and footers decide how the rest is read: half of the changes fall there.
    size = len(data)
    near = chance.randrange(min(size, 512))
    place = chance.choice((near, size - 1 - near, chance.randrange(size), chance.randrange(size)))
    length = min(chance.choice((1, 2, 4, 16, 64, 512, 4096)), size - place)
    match chance.randrange(9):
        case 0 | 1:
            data[place] ^= 1 << chance.randrange(8)
        case 2:
            data[place] = chance.randrange(256)
        case 3:
            width = chance.choice((1, 2, 4, 8))
            number = chance.choice(INTERESTING) % 256**width
            order = chance.choice(("little", "big"))
            data[place : place + width] = number.to_bytes(width, order)
        case 4:
            del data[place:]
        case 5:
            del data[place : place + length]
        case 6:
            data[place:place] = data[place : place + length]
        case 7:
            other = chance.randrange(size)
            data[place : place + length] = data[other : other + length]
        case 8:
            data[place : place + length] = chance.randbytes(length)


def strange(chance: Random) -> Any:
    """A value of JSON that nobody expects."""
    return chance.choice(
        (
            None, True, False, 0, -1, 1.5, 10**400, -(10**400), 1e308, float("nan"), float("inf"),
            2**63, "", " ", "\0", "\ud800", "../../etc/passwd", "/etc/passwd", "~", "a" * 300,
            "é" * 70_000, "<image>", "<image>" * 5000, "<video>", "<|eot_id|>", "\u202e", "%s",
            [], {}, [[]], [None], [1, 2, 3, 4], {"a": {}}, [{}], nested(chance.choice((5, 60))),
            list(range(5000)), {str(n): n for n in range(3000)},
        )
    )  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = "deep"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def broken_json(chance: Random, value: Any) -> Any:
    """A copy with up to three changes somewhere within it."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        value = _changed(chance, value)
    return value


def _changed(chance: Random, value: Any) -> Any:
    deeper = isinstance(value, dict | list) and value and chance.random() < 0.85
    if not deeper:
        return strange(chance)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = chance.choice(keys)
    match chance.randrange(8):
        case 0:
            del value[key]
        case 1:
            if isinstance(value, list):
                value.insert(key, value[chance.choice(keys)])
            else:
                value[f"{key}_"] = value.pop(key)
        case 2:
            other = chance.choice(keys)
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = _changed(chance, value[key])
    return value


def json_bytes(chance: Random, value: Any) -> bytes:
    """As text, now and then broken as text too."""
    if chance.random() < 0.02:
        return chance.choice((b"[", b'{"a":', b"[{", b"9")) * 100_000
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return broken_bytes(chance, data) if chance.random() < 0.2 else data


def linked_copy(source: Path, target: Path) -> None:
    """The files of a folder as hard links: `replace` one, never write into it."""
    for folder, _, files in os.walk(source):
        below = target / Path(folder).relative_to(source)
        below.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.link(Path(folder, file), below / file)


def replace(path: Path, data: bytes) -> None:
    """Other content under the same name; other links to the old content keep it."""
    path.unlink()
    path.write_bytes(data)


def break_file(chance: Random, folder: Path) -> tuple[Path, bytes | None]:
    """Breaks one file below `folder`, or takes it away. Returns which, and its new content."""
    path = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    before = path.read_bytes()
    match chance.randrange(12):
        case 0:
            path.unlink()
            return path, None
        case 1:
            replace(path, b"")
            return path, b""
        case 2:
            path.unlink()
            path.mkdir()
            return path, None
    if path.suffix == ".json" and chance.random() < 0.8:
        after = json_bytes(chance, broken_json(chance, json.loads(before)))
    else:
        after = broken_bytes(chance, before)
    replace(path, after)
    return path, after
