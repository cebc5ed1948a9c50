"""An exponential moving average of the weights, which draws better than where training stands."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metamorph.training.parallel import local_part


class MovingAverage:
    """The averages of those parameters of a module that are trained, in fp32 on their devices; of
    shards, where a process holds shards. There are none before `follow`, and with a `decay` of 0.

    With step n, from 1, each moves 1 - d of the way to its parameter, where d is the smaller of
    `decay` and (1 + n) / (10 + n): what a run began with, random weights among them, is forgotten
    soon. Where a step was bad, nothing moves.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.averages: dict[str, Tensor] = {}  # by the names of the parameters

    def follow(self) -> None:
        """Begins the averages of parameters that are trained from now on, at what they are."""
        if self.decay:
            for name, parameter in self.module.named_parameters():
                if parameter.requires_grad and name not in self.averages:
                    self.averages[name] = parameter.detach().float().clone()

    @torch.no_grad()
    def update(self, number: int, bad: Tensor) -> None:
        """Step `number`, from 1, is done, unless it was `bad`, a bool of the device."""
        if not self.averages:
            return
        pairs = self._pairs()
        decay = min(self.decay, (1 + number) / (10 + number))
        way = torch.where(bad, 0.0, 1 - decay).to(pairs[0][0].device)  # without asking the device
        averages, weights = zip(*pairs, strict=True)
        torch._foreach_lerp_(averages, [weight.float() for weight in weights], [way] * len(pairs))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of them: themselves, to be loaded into."""
        return {f"average.{name}": average for name, average in self.averages.items()}

    @contextmanager
    def in_place(self) -> Generator[None]:
        """For as long as the body runs, the module has the averages for its weights."""
        pairs = self._pairs()
        with torch.no_grad():
            weights = [weight.clone() for _, weight in pairs]
            for average, weight in pairs:
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, weight), before in zip(pairs, weights, strict=True):
                    weight.copy_(before)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each average and its parameter, as far as this process holds them."""
        parameters = dict(self.module.named_parameters())
        return [
            (local_part(average), local_part(parameters[name]))
            for name, average in self.averages.items()
        ]
