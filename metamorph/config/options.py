"""What a key is made of: its help, default, limits and stages, and the types of its value."""

from copy import copy
from dataclasses import MISSING, field
from typing import Any

NUMBERS = dict[str, float]
NAMES = dict[str, str]
NAME_LIST = list[str]
SHARE_OR_PATH = float | str
SHARE = {"minimum": 0, "maximum": 1}
# What uses a key, where not all do: stages, and in stage decoder kinds of decoder, sources of data
# and families of their records. In others it is refused: `metamorph.training.rules.uses` for a run,
# `metamorph.data.uses` for each source.
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
REMOTE = "webdataset at an address"  # beside the kinds of `data.source`
GENERATED_SOURCES = {"sources": ("toy_scenes", "english_scenes")}
RECORD_SOURCES = {"sources": ("jsonl", "webdataset", "parquet", "hf", REMOTE)}
REMOTE_SOURCES = {"sources": (REMOTE,)}
FILE_SOURCES = {"sources": (*RECORD_SOURCES["sources"], "pictures")}
LINKED_SOURCES = {"sources": ("jsonl", "webdataset", "parquet", "pictures")}
VIDEO_FAMILIES = {**RECORD_SOURCES, "families": ("video_questions", "video_frames")}


def option(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """A config field: its help, its limits (minimum, above, maximum, below, filled, names), and
    what uses it (stages, kinds, sources, families). A default of None stands for one that
    `RunConfig` chooses, or that `model.folder` says."""
    metadata = {"help": help, **metadata}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
