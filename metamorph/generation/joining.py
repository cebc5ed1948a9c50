"""A model and a decoder that were trained apart, as one folder that draws."""

import os
import shutil
from pathlib import Path

from metamorph.decoder.pipeline import COMPONENTS, VisualDecoder
from metamorph.disk import temporary_beside
from metamorph.folders import check_folder
from metamorph.model.unified import MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_tokenizer

WEIGHTS = ".safetensors"
SETTINGS = (".json", ".jinja", ".txt", ".model")  # configs and the files of tokenizers


def join(model: str | Path, decoder: str | Path, output: Path) -> None:
    """Writes `output`, a copy of the model folder with the decoder in `output/decoder`.

    It appears whole or not at all. Weights are hard links where the file system allows it, so they
    take no more room; every other file is a copy. Nothing but safetensors and settings is taken.
    Raises `UserError` unless the decoder draws from the features that the model predicts.
    """
    model, decoder = check_folder(model), check_folder(decoder)
    config = MetaMorphConfig.read(model)
    read_tokenizer(model)
    vision = None
    if (model / "encoder").exists():
        vision = VisionEncoder.from_pretrained(model / "encoder", config.grid)
    VisualDecoder.for_model(decoder, config, vision)
    parts = {
        model: Path(),
        model / "encoder": Path("encoder"),
        decoder: Path("decoder"),
        **{decoder / name: Path("decoder") / name for name in COMPONENTS},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = temporary_beside(output)
    try:
        for source, place in parts.items():
            if source.is_dir():
                _take_files(source, staging / place)
        os.replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _take_files(source: Path, target: Path) -> None:
    """The weights and settings of one folder, without the folders in it."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix in SETTINGS:
            shutil.copyfile(path, target / path.name)
        elif path.suffix == WEIGHTS:
            try:
                os.link(path.resolve(), target / path.name)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(path, target / path.name)
