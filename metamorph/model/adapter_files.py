"""What a run with LoRA taught, in a few megabytes: read again on top of the language model that the
run began with.

The folder is as peft writes it, so that peft opens the adapters, with the rest beside them: the
projector, the vision head, the rows of added tokens, and the settings of the model. The language
model is not in it. A sample of its values is, so that another one is not taken for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.disk import write_text
from metamorph.errors import UserError, shown
from metamorph.folders import check_file
from metamorph.model.language import Llama
from metamorph.model.opening import assemble
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.model.weights import check_tensors, read_file, read_json, write_file, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PEFT_PREFIX = "base_model.model."  # of what a PeftModel wraps
ADAPTERS_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEADS_FILE = "projector_and_vision_head.safetensors"
TEMPLATE_FILE = "chat_template.jinja"
HEADS = ("projector.", "vision_head.")
INPUT_ROWS, OUTPUT_ROWS = "added_input_rows", "added_output_rows"  # [added tokens, H]
SAMPLE = "language_sample"  # of the language model's own matrices
SAMPLED = 8  # values of each
# Ways of peft to compute an adapter that are not a plain sum of products.
UNKNOWN_WAYS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias")


def language_sample(language: Llama, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """The first values of each weight of a language model, float32 [weights, SAMPLED], adapters
    left out. Rows that were added to a pretrained one stand last, and do not change it.

    `whole` gives the values of a parameter that is more than a tensor here.
    """
    sample = []
    for name, parameter in language.named_parameters():
        if ".lora_" not in name:
            values = whole(parameter).flatten()[:SAMPLED].float().cpu()
            sample.append(F.pad(values, (0, SAMPLED - len(values))))
    return torch.stack(sample)


def heads_and_rows(
    model: MetaMorph, whole: Callable[[Tensor], Tensor] = Tensor.detach
) -> dict[str, Tensor]:
    """What of a model is trained whole beside adapters or before them, by its name in
    `HEADS_FILE`. `whole` as in `language_sample`."""
    tensors = {
        name: whole(parameter).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if name.startswith(HEADS)
    }
    for name, table in _tables(model.language).items():
        tensors[name] = whole(table).cpu()[model.config.added_ids].contiguous()
    return tensors


def _tables(language: Llama) -> dict[str, Tensor]:
    tables = {INPUT_ROWS: language.model.embed_tokens.weight}
    if not language.config.tie_word_embeddings:
        tables[OUTPUT_ROWS] = language.output_weight
    return tables


def write_adapter(
    folder: Path,
    adapters: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    sample: Tensor,
    config: MetaMorphConfig,
    chat_template: str,
) -> None:
    """Write all but peft's own settings.

    Args:
        adapters: lora_A [rank, in] and lora_B [out, rank] by the names of peft.
        heads: of `heads_and_rows`.
        sample: `language_sample` of the language model before it was adapted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / ADAPTERS_FILE, adapters)
    write_file(folder / HEADS_FILE, {**heads, SAMPLE: sample})
    write_json(folder / "config.json", config.to_dict())
    write_text(folder / TEMPLATE_FILE, chat_template)


def open_adapted(
    folder: Path, language: Path, vision: Path
) -> "tuple[MetaMorph, PreTrainedTokenizerBase]":
    """The model that a run with LoRA left, made again of its `adapter` folder, the language model
    that it began with and its encoder, in float32, and its tokenizer.

    Raises `UserError` where a file is damaged or the parts do not belong together.
    """
    config = MetaMorphConfig.read(folder)
    template = check_file(folder / TEMPLATE_FILE, "the chat template of an adapter")
    model, tokenizer = assemble(language, vision, grid=config.grid, chat_template=str(template))
    model = model.float()
    model.config.prompt_images = config.prompt_images  # the run's to say, not its parts'
    heads = read_file(folder / HEADS_FILE)
    own = language_sample(model.language)
    sample = heads.pop(SAMPLE, own.new_empty(0)).float()
    if sample.shape != own.shape or not torch.allclose(sample, own, rtol=1e-2):
        raise UserError(f"{folder}: its run began with another language model than {language}")
    if model.config != config:
        name = next(
            key for key, value in config.to_dict().items() if model.config.to_dict()[key] != value
        )
        raise UserError(
            f"{folder / 'config.json'}: {name} is {shown(config.to_dict()[name])}, but {language} "
            f"and {vision} give {shown(model.config.to_dict()[name])}"
        )
    expected = heads_and_rows(model)
    check_tensors(expected, heads, folder / HEADS_FILE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in heads:
                parameter.copy_(heads[name])
        for name, table in _tables(model.language).items():
            table[model.config.added_ids] = heads[name].to(table.dtype)
    _merge(model.language, folder)
    return model, tokenizer


@torch.no_grad()
def _merge(language: Llama, folder: Path) -> None:
    """Add each adapter of a folder to the weight that it stands on."""
    path, settings_path = folder / ADAPTERS_FILE, folder / PEFT_CONFIG
    settings = read_json(settings_path)
    rank, scale = _rank_and_scale(settings, settings_path)
    layers = dict(language.named_modules())
    lacking = _adapted(layers, settings, settings_path)
    for name, down, up in _pairs(read_file(path), path):
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise UserError(f"{path}: {name!r} is no linear layer of the model")
        shapes = (layer.out_features, rank), (rank, layer.in_features)
        if (up.shape, down.shape) != shapes:
            raise UserError(
                f"{path}: the adapter of {name!r} is {tuple(up.shape)} x {tuple(down.shape)}, "
                f"expected {shapes[0]} x {shapes[1]}"
            )
        layer.weight += scale * (up.float() @ down.float())
        lacking.discard(name)
    if lacking:
        raise UserError(f"{path}: the adapter of {min(lacking)!r} is missing")


def _rank_and_scale(settings: Mapping[str, Any], path: Path) -> tuple[int, float]:
    """Columns of each lora_B, and what a product of an adapter is multiplied by."""
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{path}: r and lora_alpha are {rank!r} and {alpha!r}, expected numbers")
    if not math.isfinite(alpha):
        raise UserError(f"{path}: lora_alpha is {alpha}, expected a finite number")
    for key in UNKNOWN_WAYS:
        if settings.get(key) not in (None, False, "none", {}):
            raise UserError(f"{path}: {key} is {shown(settings[key])}, which is not served")
    return rank, alpha / rank


def _adapted(layers: Mapping[str, nn.Module], settings: Mapping[str, Any], path: Path) -> set[str]:
    """Names of the linear layers that the run adapted."""
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise UserError(
            f"{path}: target_modules is {shown(targets)}, expected a list of names of layers"
        )
    ends = tuple(f".{target}" for target in targets)  # a target is the end of a name, as in peft
    return {
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear) and f".{name}".endswith(ends)
    }


def _pairs(tensors: dict[str, Tensor], path: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each adapter: the name of its layer, lora_A [rank, in], lora_B [out, rank]."""
    names = {key.removeprefix(PEFT_PREFIX).rsplit(".lora_", 1)[0] for key in tensors}
    for name in sorted(names):
        keys = [f"{PEFT_PREFIX}{name}.lora_{part}.weight" for part in "AB"]
        absent = [key for key in keys if key not in tensors or tensors[key].ndim != 2]
        if absent:
            raise UserError(f"{path}: expected a matrix {absent[0]!r}")
        yield name, tensors[keys[0]], tensors[keys[1]]
    if len(tensors) != 2 * len(names):
        raise UserError(f"{path}: expected two matrices for each of {len(names)} layers")
