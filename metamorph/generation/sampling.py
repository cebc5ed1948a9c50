"""Choosing the next text token from logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metamorph.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How text tokens are chosen; the default is greedy.

    Temperature 0 takes the best token. Above 0, logits are divided by it, cut to the `top_k`
    best, then to the smallest set whose probability reaches `top_p`; draws come from `generator`,
    which must live on the model's device. Images are never sampled: they have one prediction.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k: expected at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")
        if self.temperature > 0 and self.generator is None:
            raise UserError("generator: a temperature above 0 needs a torch.Generator")


GREEDY = Sampling()


def sample(logits: Tensor, sampling: Sampling) -> Tensor:
    """Token ids [N], int64, from logits [N, V]. Stays on the device without a host sync."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        worst_kept = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]  # [N, 1]
        logits = logits.masked_fill(logits < worst_kept, -math.inf)
    if sampling.top_p is not None:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        better = ordered.cumsum(dim=-1) - ordered  # probability of all strictly better tokens
        dropped = (better >= sampling.top_p).scatter(1, order, better >= sampling.top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    # An exponential race picks token i with probability p_i; multinomial would check on the host.
    arrival = torch.empty_like(logits).exponential_(generator=sampling.generator)
    return (logits.softmax(dim=-1) / arrival).argmax(dim=-1)
