"""Settings that can be changed while one talks: `/set KEY VALUE`."""

from typing import Any

from metamorph.errors import UserError, shown
from metamorph.generation.flat_settings import flat, replaced
from metamorph.generation.settings import AnswerSettings
from metamorph.terminal.commands import nearest

KEYS = {  # of `flat` settings, with the kind of their values
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_new_tokens": int,
    "max_images": int,
    "guidance": float,
    "drawing_steps": int,
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
    return [f"{key} = {UNSET if values[key] is None else values[key]}" for key in KEYS]
