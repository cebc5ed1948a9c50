"""Settings that can be changed while one talks: `/set KEY VALUE`."""

from collections.abc import Callable
from typing import Any

from metamorph.errors import UserError, shown
from metamorph.generation.flat_settings import flat, replaced
from metamorph.generation.settings import AnswerSettings
from metamorph.terminal.commands import nearest


def numbers(text: str) -> list[float]:
    """Of a text like 0.1,0.6."""
    return [float(part) for part in text.split(",")]


KEYS: dict[str, Callable[[str], Any]] = {  # of `flat` settings, with the kind of their values
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
    "max_images": int,
    "drawing_steps": int,
    "sampler": str,
    "guidance": float,
    "guidance_rescale": float,
    "guidance_interval": numbers,
}
UNSET = "default"  # how a setting without a value is shown, and set


def with_value(settings: AnswerSettings, key: str, text: str = UNSET) -> AnswerSettings:
    """The settings with another value of a key, as typed; `default` is the usual one.

    Raises `UserError` for a key that is not there, naming the nearest, and for a value that the
    key cannot have.
    """
    key = key.replace("-", "_")
    if key not in KEYS:
        closest = nearest(key, KEYS)
        raise UserError(f"/set: there is no setting {shown(key)}, the nearest is '{closest}'")
    value: Any = text
    if text == UNSET:
        value = flat(AnswerSettings())[key]
    else:
        try:
            value = KEYS[key](text)
        except ValueError:
            pass  # its own check refuses the text, saying what was expected
    try:
        return replaced(settings, {key: value})
    except UserError as error:
        _, _, problem = str(error).partition(": ")
        raise UserError(f"/set {key}: {problem}") from error


def setting_lines(settings: AnswerSettings) -> list[str]:
    values = flat(settings)
    return [f"{key} = {_written(values[key])}" for key in KEYS]


def _written(value: Any) -> str:
    """As one would type it."""
    if value is None:
        return UNSET
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
