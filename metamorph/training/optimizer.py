"""AdamW, by whom the configuration asks for, and its learning rate."""

import math

import torch
from torch import nn

from metamorph.config import RunConfig, TrainingConfig
from metamorph.training.progress import Progress


def learning_rate(progress: Progress, training: TrainingConfig) -> float:
    """Rate of the step that `progress` is at the end of: linear warm-up, then a cosine to zero
    (paper appendix A)."""
    total, peak = progress.total, training.learning_rate
    warmup = math.ceil(total * training.warmup_ratio)
    if progress.before < warmup:
        return min(peak * progress.done / warmup, peak)
    share = (progress.before - warmup) / max(total - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def rate_factors(training: TrainingConfig) -> dict[str, float]:
    """What the learning rate of each part of the model is multiplied with."""
    return {
        "language": training.language_rate_factor,
        "projector": training.projector_rate_factor,
        "vision_head": training.vision_head_rate_factor,
    }


def logged_rates(rate: float, training: TrainingConfig) -> dict[str, float]:
    """`learning_rate`, and that of each part that has one of its own."""
    factors = rate_factors(training).items()
    own = {f"learning_rate_{part}": rate * factor for part, factor in factors if factor != 1}
    return {"learning_rate": rate, **own}


def make_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW; decay only for matrices outside the embeddings, so that untouched rows stay put.

    Each child of `module` that is trained has groups of its own, with its `rate_factor`.
    """
    training = config.training
    factors, groups = rate_factors(training), []
    for part, child in module.named_children():
        decayed, plain = [], []
        for name, parameter in child.named_parameters():
            if parameter.requires_grad:
                is_embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
                (plain if parameter.ndim < 2 or is_embedding else decayed).append(parameter)
        for params, decay in ((decayed, training.weight_decay), (plain, 0.0)):
            if params:
                groups.append(
                    {"params": params, "weight_decay": decay, "rate_factor": factors[part]}
                )
    options = {"lr": training.learning_rate, "betas": (training.beta1, training.beta2)}
    if training.optimizer == "apex":
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, **options, adam_w_mode=True)
    if training.optimizer == "adamw8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(groups, **options, bf16_stochastic_round=True)
    return torch.optim.AdamW(groups, **options, fused=True)
