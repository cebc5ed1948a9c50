"""Choosing text tokens on the device: one program for rows of any settings.

A draw is a race: token i arrives at an exponential time of rate p_i, and the first one wins. The
times are hashes of (seed, how many tokens the answer has, token id), so that a request draws the
same in any batch, in any slot, on any device.
"""

import math

import torch
from torch import Tensor

from metamorph.generation.settings import Sampling

LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny  # a smaller divisor could be rounded to 0
ALL = 2.0  # in place of a top_p of 1, which cuts nothing even where probabilities add up to over 1
MASK = 2**32 - 1


class SamplingTable:
    """The settings of each of B rows as tensors [B] on `device`; the default is greedy.

    `seen` [B, V] are the tokens that a repetition penalty applies to.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device):
        self.temperature = torch.zeros(rows, device=device)
        self.top_k = torch.full((rows,), vocabulary, device=device)
        self.top_p = torch.full((rows,), ALL, device=device)
        self.min_p = torch.zeros(rows, device=device)
        self.penalty = torch.ones(rows, device=device)
        self.seed = torch.zeros(rows, dtype=torch.int64, device=device)
        self.seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)

    def set(self, row: int, sampling: Sampling, seen: Tensor) -> None:
        """Row `row` gets these settings; `seen` int64 [n] are the text tokens of its prompt."""
        vocabulary = self.seen.shape[1]
        self.temperature[row] = sampling.temperature
        self.top_k[row] = min(sampling.top_k or vocabulary, vocabulary)
        self.top_p[row] = ALL if sampling.top_p in (None, 1) else sampling.top_p
        self.min_p[row] = sampling.min_p or 0.0
        self.penalty[row] = sampling.repetition_penalty
        self.seed[row] = sampling.seed
        self.seen[row] = False
        if sampling.repetition_penalty != 1:
            self.seen[row, seen] = True

    def narrow(self, rows: int) -> "SamplingTable":
        """The first `rows` of them: views."""
        part = object.__new__(SamplingTable)
        part.__dict__ = {name: tensor[:rows] for name, tensor in self.__dict__.items()}
        return part

    def cuts_nothing(self) -> bool:
        """Whether every token of every row may be drawn: then nothing has to be sorted."""
        whole = (self.top_k >= self.seen.shape[1]) & (self.top_p == ALL) & (self.min_p == 0)
        return bool(whole.all())

    def choose(self, logits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """(token ids, best logits), [B] each, from logits [B, V] in fp32 and the number of tokens
        that each answer has, `drawn` int64 [B]. Where logits are not finite, nor is the best."""
        penalised = torch.where(
            logits > 0, logits / self.penalty[:, None], logits * self.penalty[:, None]
        )
        logits = torch.where(self.seen, penalised, logits)
        best, greedy = logits.max(dim=-1)
        # Measured from the best one, no quotient is too large: the worst ones become -infinity.
        distance = logits - best[:, None]
        distance = distance / self.temperature.clamp_min(LEAST_TEMPERATURE)[:, None]
        arrival = exponential_times(self.seed, drawn, logits.shape[-1])
        may_ask = logits.device.type == "cpu" and not torch.compiler.is_compiling()
        if may_ask and self.cuts_nothing():  # what a graph holds depends on no value
            winner = (distance.exp() / arrival).argmax(dim=-1)
            return torch.where(self.temperature > 0, winner, greedy), best
        ordered, order = distance.sort(dim=-1, descending=True)  # [B, V]
        last_kept = ordered.gather(1, self.top_k[:, None] - 1)  # [B, 1]
        ordered = ordered.masked_fill(ordered < last_kept, -math.inf)
        probabilities = ordered.softmax(dim=-1)
        better = probabilities.cumsum(dim=-1) - probabilities  # of all strictly better tokens
        weights = ordered.exp()  # as without a cut: nothing depends on a neighbour's rounding
        dropped = (better >= self.top_p[:, None]) | (weights < self.min_p[:, None])
        weights = weights.masked_fill(dropped, 0.0)
        winner = (weights / arrival.gather(1, order)).argmax(dim=-1, keepdim=True)
        token_ids = torch.where(self.temperature > 0, order.gather(1, winner)[:, 0], greedy)
        return token_ids, best


def exponential_times(seed: Tensor, drawn: Tensor, vocabulary: int) -> Tensor:
    """Exponential times [B, V] of rate 1, fp32, from seeds and counts, int64 [B] below 2**32."""
    row = _scrambled(_scrambled(seed) ^ drawn)[:, None]
    token = torch.arange(vocabulary, device=seed.device)
    bits = _scrambled(_scrambled(token * 0x9E3779B1 & MASK) ^ row)
    return -torch.log1p(-(bits.float() + 0.5) * 2.0**-32)


def _scrambled(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers, held in int64, each bit of which moves half of all bits."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK
    return x ^ (x >> 16)
