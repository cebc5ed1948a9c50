"""What is known of the steps since the last log line, without asking the device in between."""

import torch
from torch import Tensor


class Means:
    """Means over steps, kept on the device and carried over a resume."""

    def __init__(self):
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, Tensor | float] = {}

    def add(self, values: dict[str, Tensor | float], bad: Tensor) -> None:
        """Adds the values of a step; of a bad one, only those that the host knows."""
        for name, value in values.items():
            count = 1.0
            if isinstance(value, Tensor):
                value, count = torch.where(bad, 0.0, value), 1.0 - bad.float()
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + count

    def values(self) -> dict[str, float]:
        """The means; a value that no step had is left out."""
        counts = {name: float(count) for name, count in self.counts.items()}
        return {name: float(self.sums[name]) / count for name, count in counts.items() if count}

    def state_dict(self) -> dict:
        return {
            "sums": {name: float(total) for name, total in self.sums.items()},
            "counts": {name: float(count) for name, count in self.counts.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
