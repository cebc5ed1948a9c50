"""A model and a decoder that were trained apart, as one folder that draws."""

import os
import shutil
from pathlib import Path

from metamorph.decoder import standalone, standalone_one_pass
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.files import COMPONENTS
from metamorph.decoder.kinds import open_decoder_for
from metamorph.decoder.one_pass_files import COMPONENTS as ONE_PASS_COMPONENTS
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.vit_decoder import ViTDecoder
from metamorph.disk import temporary_beside
from metamorph.folders import check_folder
from metamorph.model.encoders import open_vision
from metamorph.model.unified import MetaMorphConfig
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
        vision = open_vision(model / "encoder", config.grid)
    opened = open_decoder_for(decoder, config, vision)
    parts = {
        model: Path(),
        model / "encoder": Path("encoder"),
        decoder: Path("decoder"),
        **{decoder / name: Path("decoder") / name for name in (*COMPONENTS, *ONE_PASS_COMPONENTS)},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = temporary_beside(output)
    try:
        for source, place in parts.items():
            if source.is_dir():
                _take_files(source, staging / place)
        # The code is ours: none of the folders' is taken.
        if isinstance(opened, VisualDecoder):
            standalone.write_code(staging / "decoder", FeatureAdapter)
        else:
            standalone_one_pass.write_code(staging / "decoder", ViTDecoder)
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
