"""How far a run is, the learning rate there, and a step of AdamW, by whom the run asks for.

How many packed rows hold an epoch is only known once it is packed. So a run of epochs ends when
every sample of them has been in a row, and its learning rate follows the share of them that was.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamorph.config import RunConfig, TrainingConfig
from metamorph.libraries import AMPERE, import_absence
from metamorph.processes import totals
from metamorph.training.parallel import local_part


def samples_to_use(training: TrainingConfig, in_epoch: int) -> int | None:
    """How many samples a run of epochs uses, at least one; None for a run of steps."""
    return max(1, round(training.epochs * in_epoch)) if training.epochs else None


@dataclass
class Progress:
    """What was done `before` the last step and is `done` now, of `total` steps or samples.

    `in_epoch`: samples of an epoch where samples are counted, else None.
    """

    total: int
    in_epoch: int | None = None
    step: int = 0  # how many are done
    before: int = 0
    done: int = 0

    @classmethod
    def of(cls, training: TrainingConfig, in_epoch: int) -> "Progress":
        """That of a run which begins. `in_epoch`: samples of an epoch of its data."""
        samples = samples_to_use(training, in_epoch)
        return cls(training.steps) if samples is None else cls(samples, in_epoch)

    def advance(self, used: int, steps: int = 1) -> None:
        """So many `steps` more are done. `used`: samples that those of this process have taken so
        far, since the run began. All processes call this."""
        self.step, self.before = self.step + steps, self.done
        # The last batch of pictures may reach into the next epoch.
        self.done = self.step if self.in_epoch is None else min(totals([used])[0], self.total)

    @property
    def is_over(self) -> bool:
        return self.done >= self.total

    @property
    def epoch(self) -> dict[str, float]:
        """`epoch`, passes over the data so far, where samples are counted."""
        return {} if self.in_epoch is None else {"epoch": self.done / self.in_epoch}

    def __str__(self) -> str:
        """Such as "5 of 100", or "5, epoch 0.25 of 1"."""
        if self.in_epoch is None:
            return f"{self.step} of {self.total}"
        return f"{self.step}, epoch {self.epoch['epoch']:.3g} of {self.total / self.in_epoch:.3g}"


def learning_rate(progress: Progress, training: TrainingConfig) -> float:
    """Rate of the step that `progress` is at the end of: warm-up to the peak, then down to zero, as
    `training.schedule` says (paper appendix A)."""
    total, peak = progress.total, training.learning_rate
    warmup = training.warmup_steps or math.ceil(total * training.warmup_ratio)
    logarithmic = training.schedule == "logarithmic"
    if progress.before < warmup:
        share = min(progress.done / warmup, 1.0)
        if logarithmic:  # of steps, whatever the run counts
            share = math.log1p(progress.step) / math.log1p(progress.step / share)
        return peak * share
    share = (progress.before - warmup) / max(total - warmup, 1)
    return peak * (1 - share if logarithmic else 0.5 * (1 + math.cos(math.pi * share)))


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


def fused_adam_absence(device_type: str) -> str | None:
    """Why Transformer Engine has no Adam here that understands sharded weights, or None."""
    module = "transformer_engine.pytorch.optimizers.fused_adam"
    return import_absence(module, AMPERE, device_type, ["FusedAdam", "DTensor"])


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
                    {"params": params, "weight_decay": decay, "rate_factor": factors.get(part, 1.0)}
                )
    options = {"lr": training.learning_rate, "betas": (training.beta1, training.beta2)}
    if training.optimizer == "apex":
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, **options, adam_w_mode=True)
    if training.optimizer == "transformer_engine":
        from transformer_engine.pytorch.optimizers.fused_adam import FusedAdam

        return FusedAdam(groups, **options, adam_w_mode=True)
    if training.optimizer == "adamw8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(groups, **options, bf16_stochastic_round=True)
    return torch.optim.AdamW(groups, **options, fused=True)


def not_finite(losses: dict[str, Tensor], norms: dict[str, Tensor]) -> Tensor:
    """Whether a loss or the norm of the gradients is not finite: a bool of the device."""
    values = list(losses.values())
    norm = norms["gradient_norm"].to(values[0].device)
    return ~torch.stack([*values, norm]).isfinite().all()


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Steps, or leaves weights and optimizer as they are if `bad`.

    PyTorch's fused AdamW decides on the device, by the attributes that a gradient scaler sets.
    Others cannot: the host has to know.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        moved = next(p for group in optimizer.param_groups for p in group["params"])
        # To a CPU (offload) this waits, as it must: torch's own copy of the flag would not.
        # pyrefly: ignore[missing-attribute]  it reads both, and declares neither
        optimizer.grad_scale, optimizer.found_inf = None, bad.float().to(local_part(moved).device)
        optimizer.step()
    elif not bad:
        optimizer.step()
