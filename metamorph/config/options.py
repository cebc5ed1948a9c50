"""What a key is made of: its help, default, limits and stages, and the types of its value."""

from copy import copy
from dataclasses import MISSING, field
from typing import Any

NUMBERS = dict[str, float]
NAMES = dict[str, str]
NAME_LIST = list[str]
SHARE_OR_PATH = float | str
SHARE = {"minimum": 0, "maximum": 1}
# Stages that use a key, and in stage decoder the kinds of decoder that do, where not all do:
# `metamorph.training.rules` refuses it in others.
LANGUAGE_STAGES = {"stages": ("language", "align", "instruct")}
DECODER_STAGE = {"stages": ("decoder",)}
DISTILL_STAGE = {"stages": ("distill",)}
DRAWING_STAGES = {"stages": ("decoder", "distill")}
DIFFUSION = {**DECODER_STAGE, "kinds": ("diffusion",)}
SAMPLING = {**DRAWING_STAGES, "kinds": ("diffusion",)}
ONE_PASS = {**DECODER_STAGE, "kinds": ("rae",)}
INSTRUCT_STAGE = {"stages": ("instruct",)}
ADAPTED_STAGES = {"stages": ("instruct", "decoder", "distill"), "kinds": ("diffusion",)}
PICTURE_STAGES = {"stages": ("align", "instruct")}


def option(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A config field: its help, its limits (minimum, above, maximum, below, filled, names), its
    stages and kinds. A default of None stands for one that `RunConfig` chooses, or that
    `model.folder` says."""
    metadata = {"help": help, **metadata}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
