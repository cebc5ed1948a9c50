"""The model that a run starts from: a MetaMorph folder, or one put together from a Hugging Face
Llama, a SigLIP encoder and a tokenizer."""

from pathlib import Path
from typing import TypedDict

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from metamorph.config import ModelConfig, RunConfig
from metamorph.errors import UserError
from metamorph.folders import check_folder
from metamorph.model.fused_parts import choose_parts, install_parts
from metamorph.model.language import Llama
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.model.vision import VisionEncoder
from metamorph.model.weights import read_json, read_tokenizer
from metamorph.tokens import END_OF_TEXT, END_OF_TURN, IMAGE_END, IMAGE_START

CPU = torch.device("cpu")
END_TOKENS = (END_OF_TEXT, END_OF_TURN)  # an instruct Llama may end a turn with either


class TokenIds(TypedDict):
    """The fields of MetaMorphConfig that a tokenizer says."""

    image_start_id: int
    image_end_id: int
    pad_id: int
    eos_ids: list[int]


def add_image_tokens(tokenizer) -> TokenIds:
    """Add the two image tokens to the tokenizer and look up all ids the model must know.

    A tokenizer without a padding token is given its end of text.
    """
    vocabulary = tokenizer.get_vocab()
    added = [
        AddedToken(text, special=True, normalized=False)
        for text in (IMAGE_START, IMAGE_END)
        if text not in vocabulary
    ]
    tokenizer.add_tokens(added, special_tokens=True)
    ends = [text for text in END_TOKENS if text in vocabulary]
    if tokenizer.eos_token is not None and tokenizer.eos_token not in ends:
        ends.append(tokenizer.eos_token)
    if not ends:
        raise UserError("tokenizer: it names no end-of-text token, so generation could not stop")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = ends[0]
    start_id, end_id, pad_id, *eos_ids = tokenizer.convert_tokens_to_ids(
        [IMAGE_START, IMAGE_END, tokenizer.pad_token, *ends]
    )
    return {
        "image_start_id": start_id,
        "image_end_id": end_id,
        "pad_id": pad_id,
        "eos_ids": eos_ids,
    }


def all_stops(eos_ids: list[int], language_config: dict, tokenizer) -> list[int]:
    """These ids, and those of the tokenizer at which a Llama's config.json says that it stops."""
    stop = language_config.get("eos_token_id")
    stops = stop if isinstance(stop, list) else [] if stop is None else [stop]
    return sorted({*eos_ids, *set(tokenizer.get_vocab().values()).intersection(stops)})


def assemble(
    language_folder: str | Path, encoder_folder: str | Path, tokenizer=None, *, grid: int = 8
):
    """Build a MetaMorph on pretrained parts, with a fresh projector and vision head.

    Args:
        language_folder: Hugging Face Llama (config.json, safetensors, tokenizer files).
        encoder_folder: Hugging Face SigLIP.
        tokenizer: a transformers tokenizer, if not that of `language_folder`; it gains
            `<image_start>` and `<image_end>`, whose rows start as the mean of the others.
        grid: an image becomes grid x grid features.

    Returns:
        (model, tokenizer), the model in the dtype of the Llama's file.
    """
    language_folder = Path(language_folder)
    if tokenizer is None:
        tokenizer = read_tokenizer(language_folder)
    before = set(tokenizer.get_vocab().values())
    ids = add_image_tokens(tokenizer)
    ids["eos_ids"] = all_stops(
        ids["eos_ids"], read_json(language_folder / "config.json"), tokenizer
    )

    language = Llama.from_pretrained(language_folder)
    size = language.config.vocab_size
    image_ids = (ids["image_start_id"], ids["image_end_id"])
    language.add_tokens([i for i in image_ids if i not in before or i >= size])
    vision = VisionEncoder.from_pretrained(encoder_folder, grid)
    config = MetaMorphConfig(language=language.config, visual_width=vision.width, grid=grid, **ids)
    model = MetaMorph(config, language, vision)
    return model.to(language.output_weight.dtype), tokenizer


def open_model(
    config: RunConfig, device: torch.device = CPU
) -> tuple[MetaMorph, PreTrainedTokenizerBase]:
    """The model and tokenizer that a run starts from, on the CPU in the dtype of its files.

    `device` is where it will compute. Raises `UserError` if the config names no start, or a library
    that cannot be used there.
    """
    start = config.model
    parts = choose_parts(start, device)  # what is missing should be known before weights are read
    if start.folder:
        model = MetaMorph.from_pretrained(check_folder(start.folder, "model.folder"))
        tokenizer = read_tokenizer(start.folder)
    elif start.language and start.vision:
        check_folder(start.language, "model.language")
        check_folder(start.vision, "model.vision")
        torch.manual_seed(config.seed)  # projector and vision head start from scratch
        model, tokenizer = assemble(start.language, start.vision, grid=start.grid)
    else:
        raise UserError("model: give either model.folder, or model.language and model.vision")
    if model.vision is None:
        raise UserError(f"model.folder: {start.folder} has no encoder/ folder")
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    install_parts(model, parts, device, dtype)
    return model, tokenizer


def grid_of(start: ModelConfig) -> int:
    """Tokens a side of an image: as `model.folder` has them if it is given, else `model.grid`."""
    if not start.folder:
        return start.grid
    return MetaMorphConfig.read(Path(start.folder)).grid


def open_encoder(start: ModelConfig) -> VisionEncoder:
    """The frozen encoder: `model.vision`, or that of `model.folder` with the folder's grid."""
    if start.folder:
        folder = check_folder(start.folder, "model.folder")
        return VisionEncoder.from_pretrained(folder / "encoder", grid_of(start))
    if start.vision:
        return VisionEncoder.from_pretrained(check_folder(start.vision, "model.vision"), start.grid)
    raise UserError("model: give model.vision (a SigLIP folder) or model.folder")
