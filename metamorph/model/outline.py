"""A MetaMorph of the right sizes and without weights, to plan with.

Sizes come from the folders that a run starts from or, while those are not there, from the public
sizes of a model of the same name in `metamorph/model/architectures`.
"""

from dataclasses import replace
from pathlib import Path

import torch

from metamorph.config import ModelConfig
from metamorph.errors import UserError
from metamorph.model.encoders import outline_vision, vision_of_sizes
from metamorph.model.language_config import LanguageConfig
from metamorph.model.opening import grid_of, prompt_images_of
from metamorph.model.tokenizer import TokenIds, open_tokenizer
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json

ARCHITECTURES = Path(__file__).parent / "architectures"


def outline(start: ModelConfig) -> tuple[MetaMorph, list[str]]:
    """A model on the meta device with its encoder, and where its sizes are from, a line each.

    A `model.folder` that is there decides; otherwise `model.language` and `model.vision` do.
    Raises UserError if neither says enough.
    """
    folder = Path(start.folder)
    if start.folder and folder.is_dir():
        config = MetaMorphConfig.read(folder)
        grid_of(start)
        config.prompt_images = prompt_images_of(start)
        with torch.device("meta"):
            encoder = outline_vision(folder / "encoder", config.grid)
        sources = [f"sizes of model.folder, {folder}"]
    elif start.language and start.vision:
        absent = [f"model.folder, {folder}, is not there yet"] if start.folder else []
        language, language_source = _sizes("model.language", start.language)
        encoder, vision_source = outline_encoder(start)
        config = _unified(start, language, encoder.width)
        config.prompt_images = prompt_images_of(replace(start, folder=""))
        sources = [*absent, language_source, vision_source]
    else:
        raise UserError(
            "model: to plan without weights, give model.language and model.vision, or a "
            "model.folder that is there"
        )
    with torch.device("meta"):
        return MetaMorph(config, vision=encoder), sources


def outline_encoder(start: ModelConfig) -> tuple[VisionEncoder, str]:
    """The encoder of `model.vision` alone, on the meta device, and where its sizes are from."""
    if not start.vision:
        raise UserError("model.vision: to plan a decoder, give the folder of the encoder")
    with torch.device("meta"):
        if Path(start.vision).is_dir():  # its preprocessor_config.json may decide a size
            encoder = outline_vision(start.vision, start.grid)
            return encoder, f"sizes of model.vision, {start.vision}"
        sizes, source = _sizes("model.vision", start.vision)
        return vision_of_sizes(sizes, start.grid), source


def public_sizes(key: str, folder: str) -> dict:
    """What is known of a public model by the last part of `folder`. UserError for another."""
    path = ARCHITECTURES / f"{Path(folder).name}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in ARCHITECTURES.glob("*.json")))
        raise UserError(
            f"{key}: {folder} is not there, and {Path(folder).name!r} is no model of known size; "
            f"known are {known}"
        )
    return read_json(path)


def _sizes(key: str, folder: str) -> tuple[dict, str]:
    if Path(folder).is_dir():
        return read_json(Path(folder) / "config.json"), f"sizes of {key}, {folder}"
    return public_sizes(key, folder), (
        f"{key}, {folder}, is not there: public sizes of {Path(folder).name}"
    )


def _unified(start: ModelConfig, language: dict, visual_width: int) -> MetaMorphConfig:
    """As `assemble` would make it: image tokens and those of the template join it."""
    sizes = LanguageConfig.from_dict(language)
    if Path(start.language).is_dir():
        _, ids = open_tokenizer(replace(start, folder=""))
    else:  # padding and end of text change no size
        first = sizes.vocab_size
        added = [first, first + 1]
        ids = TokenIds(
            image_start_id=first, image_end_id=first + 1, pad_id=0, eos_ids=[0], added_ids=added
        )
    sizes.vocab_size = max(sizes.vocab_size, *(added + 1 for added in ids["added_ids"]))
    return MetaMorphConfig(language=sizes, visual_width=visual_width, grid=start.grid, **ids)
