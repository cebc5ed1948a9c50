"""What the data tools on the command line work on: a run file, a mixture file or a folder of
pictures, with `--data.*` and `--model.*` as `metamorph train` takes them."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamorph.config import DataConfig, PartConfig, RunConfig
from metamorph.config.reading import (
    add_config_arguments,
    build_config,
    load_config,
    overrides_from_namespace,
)
from metamorph.config.shipped import find_config
from metamorph.config.strict_yaml import read_yaml
from metamorph.errors import UserError

if TYPE_CHECKING:
    from metamorph.data.conversation import ChatEncoder

OF_TRAINING = ("features", "verify_features", "workers")  # keys of data that nothing here uses
SECTIONS = (
    *(f"data.{entry.name}" for entry in fields(DataConfig) if entry.name not in OF_TRAINING),
    "model",
)
PART_KEYS = {entry.name for entry in fields(PartConfig)}
RECORDS = (".json", ".jsonl", ".parquet", ".tar")
RUN_KEYS = {entry.name for entry in fields(RunConfig)}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, `--bad`, and the keys of a run's data and model."""
    parser.add_argument(
        "data", type=Path, metavar="FILE", help="run file, mixture file, or folder of pictures"
    )
    parser.add_argument(
        "--bad", type=Path, metavar="FILE", help="list every bad sample there, one JSON line each"
    )
    add_config_arguments(parser, *SECTIONS)


def read_data_inputs(arguments: argparse.Namespace, *sections: str) -> RunConfig:
    """The run whose data is meant: that of a run file; of a mixture file, which names no model; or
    of a decoder, for a folder of pictures. Then the keys of the command line, of `sections`, too.

    Raises `UserError` for anything else, and for what the stage does not use.
    """
    from metamorph.training.rules.uses import check_uses

    overrides = overrides_from_namespace(
        arguments, arguments.unknown_arguments, *SECTIONS, *sections
    )
    path = find_config(arguments.data)
    if path.is_dir():
        config = _build(path, overrides, stage="decoder", source="pictures")
    elif path.suffix.lower() in RECORDS:
        raise UserError(
            f"{path}: it holds samples itself, expected a run file or mixture file whose path it "
            f"is, or a folder of pictures"
        )
    elif is_run_file(read_yaml(path)):
        config = load_config(path, overrides)
    else:
        config = _build(path, overrides, stage="instruct", source="mixture")
    check_uses(config)
    return config


def _build(path: Path, overrides: dict[str, str], stage: str, source: str) -> RunConfig:
    """A run that was never written down."""
    given = {"stage": stage, "output": "none", "data.source": source, "data.path": str(path)}
    return build_config(given, str(path), overrides)


def is_run_file(written: Any) -> bool:
    """Whether YAML is meant as a run file, complete or not, rather than as a mixture.

    A part of a mixture may be called `training` or `data`; then its keys are those of a part.
    """

    def is_part(values: Any) -> bool:
        return isinstance(values, dict) and bool(values) and set(values) <= PART_KEYS

    if not isinstance(written, dict):
        return False
    return not all(is_part(values) for name, values in written.items() if name in RUN_KEYS)


def check_chat_format(config: RunConfig) -> None:
    """Raises `UserError` if the run names a language model that is here, whose samples could not be
    written as tokens."""
    folder = config.model.folder or config.model.language
    if not config.trains_decoder and folder and (Path(folder) / "tokenizer.json").is_file():
        open_chat_encoder(config)


def open_chat_encoder(config: RunConfig) -> "ChatEncoder":
    """The tokens of a run's samples, from its model's tokenizer. No weights are read.

    Raises `UserError` if the run names no model.
    """
    from metamorph.data.conversation import ChatEncoder
    from metamorph.model.opening import grid_of
    from metamorph.model.tokenizer import open_tokenizer

    if not (config.model.folder or config.model.language):
        raise UserError(
            "model.language: nothing says whose tokens to count; give --model.language FOLDER, "
            "or --model.folder"
        )
    tokenizer, _ = open_tokenizer(config.model)
    return ChatEncoder(tokenizer, grid_of(config.model) ** 2)
