"""Folders for other programs: the parameter names of the official release, and plain Hugging Face.

The language model has the same names everywhere. Around it:

| here | official release |
|---|---|
| projector.linear_1, projector.linear_2 | model.mm_projector.0, model.mm_projector.2 |
| vision_head.linear_1, vision_head.linear_2 | vision_head.0, vision_head.2 |
"""

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from metamorph.config.keys import ExportFormat
from metamorph.errors import UserError, within
from metamorph.model.encoders import open_vision
from metamorph.model.language_config import LanguageConfig
from metamorph.model.language_families import FAMILIES, LLAMA
from metamorph.model.tokenizer import add_image_tokens, all_stops
from metamorph.model.unified import MetaMorph, MetaMorphConfig, file_name, parameter_name
from metamorph.model.weights import (
    check_tensors,
    read_json,
    read_tensors,
    read_tokenizer,
    write_json,
    write_tensors,
    write_tokenizer,
)

FORMATS = get_args(ExportFormat)
PREFIXES = {  # here: in the official release
    "projector.linear_1.": "model.mm_projector.0.",
    "projector.linear_2.": "model.mm_projector.2.",
    "vision_head.linear_1.": "vision_head.0.",
    "vision_head.linear_2.": "vision_head.2.",
}
# The encoder, which comes from a folder of its own, and parameters that nothing computes with.
LEFT_OUT = {"vision_tower", "vision_proj", "temperature_in"}


def official_name(name: str) -> str:
    """A tensor of our model.safetensors by its name in the official release."""
    return _renamed(name, PREFIXES)


def our_name(name: str) -> str:
    """A tensor of the official release, or of our own, by its name in our model.safetensors."""
    return _renamed(name, {official: here for here, official in PREFIXES.items()})


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def export_model(model: MetaMorph, folder: str | Path, tokenizer, form: str) -> None:
    """Write weights, config.json and generation_config.json of the language model, and the
    tokenizer with the chat template that the model was trained with; no encoder.

    `form` hf keeps our names for projector and vision head: what loads a Llama or a Qwen finds one,
    and passes over the rest. `official` takes those of the official release. UserError for another.
    """
    if form not in FORMATS:
        raise UserError(f"format: expected one of {', '.join(FORMATS)}, got {form!r}")
    folder = Path(folder)
    tensors = {
        file_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("vision.")
    }
    if form == "official":
        tensors = {official_name(name): tensor for name, tensor in tensors.items()}
    write_tensors(folder, tensors)
    write_tokenizer(folder, tokenizer)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": model.config.eos_ids,
        "pad_token_id": model.config.pad_id,
    }
    dtype = str(model.language.output_weight.dtype).removeprefix("torch.")
    own = {"dtype": dtype, "prompt_images": model.config.prompt_images}
    config = model.config.language.to_dict() | special | own
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", special)


def import_model(
    folder: str | Path, encoder_folder: str | Path, *, grid: int = 8, chat_template: str = ""
):
    """(model, tokenizer) from a folder as the official release or `export_model` writes it.

    Args:
        folder: config.json of a language model (a `model_type` that is not known stands for a
            Llama), safetensors under official names or ours, tokenizer files with both image
            tokens.
        encoder_folder: of the encoder, as `open_vision` opens it.
        grid: an image becomes grid x grid features.
        chat_template: the format that it was trained with, a file or llama3, if the tokenizer's own
            is another.

    UserError if anything does not fit.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    kind = settings.get("model_type")
    kind = kind if kind in tuple(FAMILIES) else LLAMA  # its tensors must fit a Llama
    with within(folder / "config.json"):
        language = LanguageConfig.from_dict(settings | {"model_type": kind})
    tokenizer = read_tokenizer(folder)
    before = tokenizer.get_vocab()
    ids = add_image_tokens(tokenizer, chat_template)
    lacking = sorted(tokenizer.get_vocab().keys() - before.keys())
    if lacking:
        raise UserError(
            f"{folder}: its tokenizer lacks {', '.join(lacking)}, so no row was trained for it"
        )
    ids["eos_ids"] = all_stops(ids["eos_ids"], folder, tokenizer)
    tensors = {
        our_name(name): tensor
        for name, tensor in read_tensors(folder).items()
        if not LEFT_OUT.intersection(name.split("."))
    }
    if language.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    vision = open_vision(encoder_folder, grid)
    hidden_sizes = {
        f"{part}_hidden_size": _hidden_size(tensors, part, folder)
        for part in ("projector", "vision_head")
    }
    with within(folder / "config.json"):
        config = MetaMorphConfig(
            language,
            vision.width,
            grid,
            **ids,
            **hidden_sizes,
            prompt_images=settings.get("prompt_images", "causal"),
        )
    with torch.device("meta"):
        model = MetaMorph(config)
    check_tensors({file_name(n): t for n, t in model.state_dict().items()}, tensors, folder)
    model.load_state_dict({parameter_name(n): t for n, t in tensors.items()}, assign=True)
    model.vision = vision.to(model.language.output_weight.dtype)
    return model, tokenizer


def _hidden_size(tensors: dict[str, Tensor], part: str, folder: Path) -> int:
    weight = tensors.get(f"{part}.linear_1.weight")
    if weight is None or weight.ndim != 2:
        raise UserError(f"{folder}: it holds no {part}, under its official name or ours")
    return len(weight)
