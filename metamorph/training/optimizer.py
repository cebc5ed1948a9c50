"""AdamW, by whom the configuration asks for."""

import torch
from torch import nn

from metamorph.config import RunConfig
from metamorph.errors import UserError
from metamorph.libraries import require, torchao_optim_absence


def check_optimizer(config: RunConfig, device: torch.device) -> None:
    """Raises ``UserError`` for an optimizer that cannot be used on ``device`` or in this run."""
    training = config.training
    if training.optimizer == "apex":
        require("training.optimizer: apex", ["apex"], device)
    if training.optimizer == "adamw8bit":
        reason = torchao_optim_absence(device.type)
        if reason is not None:
            raise UserError(
                f"training.optimizer: adamw8bit cannot be used here (torchao: {reason}); "
                f"see docs/libraries.md"
            )
    if training.weights == "bf16" and training.optimizer != "adamw8bit":
        raise UserError(
            "training.weights: bf16 loses small updates unless they are rounded by chance, as only "
            f"training.optimizer adamw8bit does, got {training.optimizer}"
        )


def make_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW; decay only for matrices outside the embeddings, so that untouched rows stay put."""
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            (plain if parameter.ndim < 2 or is_embedding else decayed).append(parameter)
    training = config.training
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    options = {"lr": training.learning_rate, "betas": (training.beta1, training.beta2)}
    if training.optimizer == "apex":
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, **options, adam_w_mode=True)
    if training.optimizer == "adamw8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(groups, **options, bf16_stochastic_round=True)
    return torch.optim.AdamW(groups, **options, fused=True)
