"""Low-rank adapters (peft) on the linear layers of the language model, or of the attention of a
decoder's UNet, instead of their weights.

LoRA, arXiv 2106.09685. Projector and vision head, or the decoder's feature adapter, are trained
whole beside them. A run of a language model leaves the adapters in peft's format and, as any other,
a model: with the adapters merged in. Of a decoder it leaves the latter.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from metamorph.config import RunConfig
from metamorph.config.keys import LORA_TARGETS
from metamorph.model.adapter_files import (
    PEFT_PREFIX,
    heads_and_rows,
    language_sample,
    write_adapter,
)
from metamorph.model.unified import MetaMorph
from metamorph.processes import is_first
from metamorph.training.parallel import local_part, local_rows, whole

if TYPE_CHECKING:
    from diffusers import ModelMixin

PartT = TypeVar("PartT", bound="ModelMixin")
# The layers that `training.lora_targets` names.
LANGUAGE_LAYERS = {name: f"{name}_proj" for name in LORA_TARGETS}
UNET_LAYERS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}


def _settings(config: RunConfig, layers: Mapping[str, str]):
    from peft import LoraConfig

    return LoraConfig(
        r=config.training.lora_rank,
        lora_alpha=config.training.lora_alpha,
        lora_dropout=config.training.lora_dropout,
        target_modules=[layers[name] for name in config.training.lora_targets if name in layers],
    )


def add_adapters(part: nn.Module, config: RunConfig, layers: Mapping[str, str]) -> None:
    """Puts adapters, which change nothing yet, on those of `layers` that `config` asks for; of this
    part of a model, only they are trained."""
    from peft import inject_adapter_in_model

    torch.manual_seed(config.seed)  # half of an adapter starts from random numbers
    part.requires_grad_(False)
    inject_adapter_in_model(_settings(config, layers), part)


def _adapted(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each peft.LoraLayer and its name."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(part.named_modules()):
        if isinstance(module, LoraLayer):
            yield name, module


def save_adapters(model: MetaMorph, folder: Path, config: RunConfig, chat_template: str) -> None:
    """Writes adapters as peft does, and what was trained beside them and before. All processes call
    this, the first one writes."""
    adapters = {}
    for name, module in _adapted(model.language):
        for part in ("lora_A", "lora_B"):
            weight = getattr(module, part)["default"].weight
            adapters[f"{PEFT_PREFIX}{name}.{part}.weight"] = _on_cpu(weight)
    heads, sample = heads_and_rows(model, whole), language_sample(model.language, whole)
    if is_first():
        write_adapter(folder, adapters, heads, sample, model.config, chat_template)
        settings = _settings(config, LANGUAGE_LAYERS)
        settings.task_type = "CAUSAL_LM"
        settings.base_model_name_or_path = config.model.folder or config.model.language
        # A set, which would be written in another order each time.
        settings.target_modules = sorted(settings.target_modules)
        settings.save_pretrained(folder)


def _on_cpu(parameter: Tensor) -> Tensor:
    return whole(parameter).cpu().contiguous()


@torch.no_grad()
def plain(part: PartT) -> PartT | None:
    """A module of diffusers as it is without adapters and shards, in the first process; None in the
    others, which all call this. One that has neither is returned itself."""
    adapted = dict(_adapted(part))
    is_sharded = any(isinstance(parameter, DTensor) for parameter in part.parameters())
    if not adapted and not is_sharded:
        return part if is_first() else None
    copy = None
    if is_first():
        # diffusers' own note of defaults counts what was given by position as one.
        sizes = {key: value for key, value in part.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            copy = cast(Any, type(part)).from_config(sizes)
    for name, parameter in part.named_parameters():
        tensor = whole(parameter)
        owner = name.removesuffix(".base_layer.weight")
        if owner in adapted and owner != name:
            tensor = tensor + _change(adapted[owner])
        if copy is not None and "lora_" not in name:
            name = name.replace(".base_layer.", ".")
            copy.load_state_dict({name: tensor}, strict=False, assign=True)
    if copy is not None:
        for name, buffer in part.named_buffers():
            owner, _, leaf = name.rpartition(".")
            setattr(copy.get_submodule(owner), leaf, buffer)
    return copy


def _change(module: Any) -> Tensor:
    """What a LoraLayer adds to the whole weight that it stands on."""
    down, up = (whole(getattr(module, part)["default"].weight) for part in ("lora_A", "lora_B"))
    return module.scaling["default"] * (up @ down)


@torch.no_grad()
def merge_adapters(part: nn.Module) -> None:
    """Adds each adapter to the weight it stands on, in place, and takes it away."""
    for name, module in _adapted(part):
        weight = module.base_layer.weight  # [out, in]
        down, up = (whole(getattr(module, part)["default"].weight) for part in ("lora_A", "lora_B"))
        local = local_part(weight)
        change = up.to(local.device)[local_rows(weight)] @ down.to(local.device)
        local.add_(module.scaling["default"] * change)
        part.set_submodule(name, module.base_layer)
