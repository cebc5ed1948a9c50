"""What a key is made of: its help, default, limits and stages, and the types of its value."""

from copy import copy
from dataclasses import MISSING, field
from typing import Any

NUMBERS = dict[str, float]
NAMES = dict[str, str]
NAME_LIST = list[str]
SHARE_OR_PATH = float | str
SHARE = {"minimum": 0, "maximum": 1}
# Stages that use a key, where not all do: `metamorph.training.rules` refuses it in others.
LANGUAGE_STAGES = {"stages": ("language", "align", "instruct")}
DECODER_STAGE = {"stages": ("decoder",)}
INSTRUCT_STAGE = {"stages": ("instruct",)}
PICTURE_STAGES = {"stages": ("align", "instruct")}


def option(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A config field: its help, its limits (minimum, above, maximum, below, filled, names), its
    stages. A default of None stands for one that `RunConfig` chooses."""
    metadata = {"help": help, **metadata}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
