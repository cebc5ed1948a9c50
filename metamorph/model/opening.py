"""The model that a run starts from: a MetaMorph folder, or one put together from a language
model of Hugging Face, an encoder and a tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metamorph.config import ModelConfig, RunConfig
from metamorph.errors import UserError, within
from metamorph.folders import check_folder
from metamorph.model.encoders import open_vision
from metamorph.model.fused_parts import choose_parts, install_parts
from metamorph.model.language import Llama
from metamorph.model.language_config import LanguageConfig
from metamorph.model.tokenizer import TokenIds, add_image_tokens, all_stops, open_tokenizer
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU = torch.device("cpu")


def assemble(
    language_folder: str | Path,
    encoder_folder: str | Path,
    tokenizer=None,
    *,
    grid: int = 8,
    chat_template: str = "",
):
    """Build a MetaMorph on pretrained parts, with a fresh projector and vision head.

    Args:
        language_folder: Hugging Face language model of one of `language_families.FAMILIES`
            (config.json, safetensors, tokenizer files).
        encoder_folder: of the encoder, as `open_vision` opens it.
        tokenizer: a transformers tokenizer, if not that of `language_folder`; it gains
            `<image_start>`, `<image_end>` and what its chat template writes, whose rows start as
            the mean of the others.
        grid: an image becomes grid x grid features.
        chat_template: as `model.chat_template` of a run.

    Returns:
        (model, tokenizer), the model in the dtype of the language model's file.
    """
    language_folder = Path(language_folder)
    if tokenizer is None:
        tokenizer = read_tokenizer(language_folder)
    before = set(tokenizer.get_vocab().values())
    ids = add_image_tokens(tokenizer, chat_template)
    ids["eos_ids"] = all_stops(ids["eos_ids"], language_folder, tokenizer)

    language = Llama.from_pretrained(language_folder)
    size = language.config.vocab_size
    language.add_tokens([i for i in ids["added_ids"] if i not in before or i >= size])
    vision = open_vision(encoder_folder, grid)
    config = MetaMorphConfig(language=language.config, visual_width=vision.width, grid=grid, **ids)
    model = MetaMorph(config, language, vision)
    return model.to(language.output_weight.dtype), tokenizer


def open_model(
    config: RunConfig, device: torch.device = CPU
) -> "tuple[MetaMorph, PreTrainedTokenizerBase]":
    """The model and tokenizer that a run starts from, on the CPU in the dtype of its files.

    `device` is where it will compute. Raises `UserError` if the config names no start, or a library
    that cannot be used there.
    """
    start = config.model
    # What is missing or does not fit should be known before weights are read.
    prompt_images = prompt_images_of(start)
    parts = choose_parts(start, device)
    if start.folder:
        folder = check_folder(start.folder, "model.folder")
        grid_of(start)
        check_positions(config.data.row_length, language_sizes(start))
        tokenizer, ids = open_tokenizer(start)
        model = MetaMorph.from_pretrained(folder)
        add_rows(model, ids)
    elif start.language and start.vision:
        check_folder(start.language, "model.language")
        check_folder(start.vision, "model.vision")
        check_positions(config.data.row_length, language_sizes(start))
        torch.manual_seed(config.seed)  # projector and vision head start from scratch
        model, tokenizer = assemble(
            start.language, start.vision, grid=start.grid, chat_template=start.chat_template
        )
    else:
        raise UserError("model: give either model.folder, or model.language and model.vision")
    if model.vision is None:
        raise UserError(f"model.folder: {start.folder} has no encoder/ folder")
    model.config.prompt_images = prompt_images
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    install_parts(model, parts, device, dtype)
    return model, tokenizer


def add_rows(model: MetaMorph, ids: TokenIds) -> None:
    """Lets a trained model have the tokens that another chat template brings."""
    new = [i for i in ids["added_ids"] if i not in model.config.added_ids]
    model.language.add_tokens(new)
    model.config.added_ids = sorted({*model.config.added_ids, *new})
    model.config.eos_ids = sorted({*model.config.eos_ids, *ids["eos_ids"]})


def language_sizes(start: ModelConfig) -> LanguageConfig:
    """The language model's settings: those in `model.folder` if it is given, else those of
    `model.language`. Raises `UserError` that names the key."""
    if start.folder:
        with within("model.folder"):
            return MetaMorphConfig.read(check_folder(start.folder)).language
    with within("model.language"):
        return LanguageConfig.read(check_folder(start.language))


def check_positions(row_length: int, language: LanguageConfig) -> None:
    """Raises `UserError` for rows longer than what the model knows positions for."""
    if row_length > language.max_position_embeddings:
        raise UserError(
            f"data.row_length: {row_length} tokens, but the model has positions for "
            f"{language.max_position_embeddings} (max_position_embeddings), "
            f"and a sample may fill a row; give that or less"
        )


def grid_of(start: ModelConfig) -> int:
    """Tokens a side of an image: as `model.folder` has them if it is given, else `model.grid`.
    Raises `UserError` for a grid that is asked for and not that of the folder."""
    if not start.folder:
        return start.grid
    own = MetaMorphConfig.read(Path(start.folder)).grid
    if start.grid not in (own, ModelConfig.grid):
        raise UserError(
            f"model.grid: got {start.grid}, but model.folder, {start.folder}, was trained with "
            f"{own} x {own} tokens a picture; leave the key out"
        )
    return own


def prompt_images_of(start: ModelConfig) -> str:
    """`model.prompt_images` if it is given, else as `model.folder` was trained; causal for a new
    model. Raises `UserError` where they are bidirectional and model.attention computes causal rows.
    """
    chosen = start.prompt_images or "causal"
    if start.folder and start.prompt_images is None:
        with within("model.folder"):
            chosen = MetaMorphConfig.read(check_folder(start.folder)).prompt_images
    if chosen == "bidirectional" and start.attention != "interval":
        raise UserError(
            f"model.attention: {start.attention} computes causal rows alone, but images in prompts "
            f"are bidirectional (model.prompt_images); leave it out (interval)"
        )
    return chosen


def open_encoder(start: ModelConfig) -> VisionEncoder:
    """The frozen encoder: `model.vision`, or that of `model.folder` with the folder's grid."""
    if start.folder:
        folder = check_folder(start.folder, "model.folder")
        return open_vision(folder / "encoder", grid_of(start))
    if start.vision:
        return open_vision(check_folder(start.vision, "model.vision"), start.grid)
    raise UserError("model: give model.vision (a folder of an encoder) or model.folder")
