"""Low-rank adapters (peft) on the linear layers of the language model, instead of its weights.

LoRA, arXiv 2106.09685. Projector and vision head are trained whole beside them. A run leaves the
adapters in peft's format and, as any other, a model: with the adapters merged in.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.disk import atomic_path
from metamorph.model.unified import MetaMorph
from metamorph.processes import is_first
from metamorph.training.parallel import local_part, local_rows, whole

PEFT_PREFIX = "base_model.model."  # of what a PeftModel wraps
HEADS_FILE = "projector_and_vision_head.safetensors"


def _settings(config: RunConfig):
    from peft import LoraConfig

    return LoraConfig(
        r=config.training.lora_rank,
        lora_alpha=config.training.lora_alpha,
        lora_dropout=config.training.lora_dropout,
        target_modules=[f"{name}_proj" for name in config.training.lora_targets],
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model.folder or config.model.language,
    )


def add_adapters(model: MetaMorph, config: RunConfig) -> None:
    """Puts adapters, which change nothing yet, on a model; of the language model, only they are
    trained."""
    from peft import inject_adapter_in_model

    torch.manual_seed(config.seed)  # half of an adapter starts from random numbers
    model.language.requires_grad_(False)
    inject_adapter_in_model(_settings(config), model.language)


def _adapted(language: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each peft.LoraLayer and its name."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(language.named_modules()):
        if isinstance(module, LoraLayer):
            yield name, module


def save_adapters(model: MetaMorph, folder: Path, config: RunConfig) -> None:
    """Writes adapters as peft does, and projector and vision head beside them. All processes call
    this, the first one writes."""
    adapters = {}
    for name, module in _adapted(model.language):
        for part in ("lora_A", "lora_B"):
            weight = getattr(module, part)["default"].weight
            adapters[f"{PEFT_PREFIX}{name}.{part}.weight"] = _on_cpu(weight)
    heads = {
        name: _on_cpu(parameter)
        for name, parameter in model.named_parameters()
        if name.startswith(("projector.", "vision_head."))
    }
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        for file, tensors in (("adapter_model.safetensors", adapters), (HEADS_FILE, heads)):
            with atomic_path(folder / file) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt"})
        _settings(config).save_pretrained(folder)


def _on_cpu(parameter: Tensor) -> Tensor:
    return whole(parameter).cpu().contiguous()


@torch.no_grad()
def merge_adapters(model: MetaMorph) -> None:
    """Adds each adapter to the weight it stands on, in place, and takes it away."""
    for name, module in _adapted(model.language):
        weight = module.base_layer.weight  # [out, in]
        down, up = (whole(getattr(module, part)["default"].weight) for part in ("lora_A", "lora_B"))
        local = local_part(weight)
        change = up.to(local.device)[local_rows(weight)] @ down.to(local.device)
        local.add_(module.scaling["default"] * change)
        model.language.set_submodule(name, module.base_layer)
