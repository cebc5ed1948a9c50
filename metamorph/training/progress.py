"""How far a run is: in steps, or in samples where `training.epochs` says how long it lasts.

How many packed rows hold an epoch is only known once it is packed. So a run of epochs ends when
every sample of them has been in a row, and its learning rate follows the share of them that was.
"""

from dataclasses import dataclass

from metamorph.config import TrainingConfig
from metamorph.processes import totals


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
