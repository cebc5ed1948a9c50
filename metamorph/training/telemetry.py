"""What a training step reports beside its losses: the visual baseline and speed."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor


class MeanBaseline:
    """Cosine reached by always predicting the mean feature of each token position.

    A visual cosine means nothing beside this number: it is what a model gets that ignores its
    prompt. The means run over ``total``, the sum of all targets seen so far; a step is scored
    before its targets are added.
    """

    def __init__(self, tokens_per_image: int, width: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(tokens_per_image, width, device=device)

    def score(self, targets: Tensor) -> Tensor:
        """The baseline's mean cosine on targets [images, tokens, C], unit vectors."""
        mean = F.normalize(self.total, dim=-1)
        return (targets.float() * mean).sum(-1).mean()


class Meter:
    """Tokens a second since the last reading."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.started = time.perf_counter()
        self.tokens = 0

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    def read(self) -> float:
        speed = self.tokens / max(time.perf_counter() - self.started, 1e-9)
        self.reset()
        return speed
