"""Text and JSON of a record: what is wrong with them is a `ValueError` in words."""

import json
from collections import Counter
from typing import Any

from metamorph.errors import shown

MOST_DIGITS = 4300
LONGEST_RECORD = 2**24  # bytes of JSON or text; parsed, they may take thirty times as much


def read_text(content: bytes, what: str) -> str:
    """UTF-8, with or without a byte order mark. `what` it is, for messages."""
    if len(content) > LONGEST_RECORD:
        raise ValueError(f"{what} is longer than {LONGEST_RECORD // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text, at byte {error.start}") from error


def read_object(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object; a key that stands twice in it is refused, for one would be lost."""
    text = read_text(content, what)
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_int=_whole)
    except json.JSONDecodeError as error:
        problem = f"{error.msg[0].lower()}{error.msg[1:]}".removesuffix(" at")
        raise ValueError(
            f"{what} is not valid JSON: {problem} at column {error.pos + 1}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{what} is not valid JSON: nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected a JSON object, got {shown(value)}")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:  # Python reads no more, for it takes the square of their time
        raise ValueError(f"not valid JSON: a number of more than {MOST_DIGITS} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {shown(twice)} stands twice in its JSON")
    return values
