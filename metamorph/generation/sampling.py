"""Choosing the next text token from logits."""

import math
from collections import abc
from dataclasses import dataclass, replace

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

    def for_one_request(self) -> "Sampling":
        """The same with a copy of the generator, whose draws move no other request's."""
        if self.generator is None:
            return self
        return replace(self, generator=self.generator.clone_state())


GREEDY = Sampling()
NOT_FINITE = -1  # in place of a token id
LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny  # a smaller divisor could be rounded to 0


def sample(logits: Tensor, sampling: Sampling) -> Tensor:
    """Token ids [N], int64, from logits [N, V], all drawn from one generator.

    Raises `UserError` where the best logit of a row is NaN or infinite.
    """
    token_ids = sample_requests(logits, [sampling] * len(logits))
    return torch.tensor(token_ids, dtype=torch.int64, device=logits.device)


def sample_requests(logits: Tensor, samplings: abc.Sequence[Sampling]) -> list[int]:
    """Token ids [N] from logits [N, V]: row i by `samplings[i]`, from its generator.

    What a row draws does not depend on the other rows. Raises `UserError` as `sample` does. The ids
    are its one transfer from the device: they say as well which rows are not finite.
    """
    best, token_ids = logits.max(dim=-1)  # of NaN and numbers the maximum is NaN
    rows_of = {}  # rows of equal settings are computed together
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            settings = (sampling.temperature, sampling.top_k, sampling.top_p)
            rows_of.setdefault(settings, []).append(row)
    for rows in rows_of.values():
        weights = _probabilities(logits[rows], samplings[rows[0]])
        arrival = torch.empty_like(weights)
        for row, times in zip(rows, arrival, strict=True):
            times.exponential_(generator=samplings[row].generator)
        token_ids[rows] = _race(weights, arrival)
    found = token_ids.masked_fill(~best.isfinite(), NOT_FINITE).tolist()
    if NOT_FINITE in found:
        raise UserError(
            "the model's logits of the next token are NaN or infinite: its weights are damaged, "
            "or its precision is too low for them"
        )
    return found


def _probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """[N, V] fp32, zero for tokens that the settings cut off."""
    logits = logits.float()
    # Measured from the best one, no quotient is too large: the worst ones become -infinity.
    distance = logits - logits.amax(dim=-1, keepdim=True)
    logits = distance / max(sampling.temperature, LEAST_TEMPERATURE)
    if sampling.top_k is not None:
        worst_kept = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]  # [N, 1]
        logits = logits.masked_fill(logits < worst_kept, -math.inf)
    if sampling.top_p is not None:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        better = ordered.cumsum(dim=-1) - ordered  # probability of all strictly better tokens
        dropped = (better >= sampling.top_p).scatter(1, order, better >= sampling.top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    return logits.softmax(dim=-1)


def _race(probabilities: Tensor, arrival: Tensor) -> Tensor:
    """Token i with probability p_i, from exponential times of arrival; both [N, V]."""
    return (probabilities / arrival).argmax(dim=-1)
