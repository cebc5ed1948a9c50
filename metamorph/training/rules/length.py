"""How long a run is, and how long it warms up."""

from metamorph.config import RunConfig, TrainingConfig
from metamorph.data.opening import endless_parts
from metamorph.errors import UserError


def check_length(config: RunConfig, own_source: bool = False) -> None:
    """Steps or epochs say how long a run is; epochs need data that ends."""
    training = config.training
    check_warmup(training)
    if not training.epochs:
        return
    if training.steps is not None:
        raise UserError(
            f"training.epochs: got {training.epochs:g}, but training.steps says {training.steps}; "
            f"a run is as long as one of the two says, leave out the other"
        )
    endless = [] if own_source else endless_parts(config.data)
    if endless:
        raise UserError(
            f"training.epochs: {endless[0]} never ends; give it data.samples, how many are an "
            f"epoch, or give training.steps"
        )


def check_warmup(training: TrainingConfig) -> None:
    """What is said of the warm-up is said once, and fits the run."""
    if training.warmup_steps is None:
        return
    if training.warmup_ratio != TrainingConfig.warmup_ratio:
        raise UserError(
            f"training.warmup_steps: got {training.warmup_steps}, but training.warmup_ratio says "
            f"{training.warmup_ratio:g}; leave out one of the two"
        )
    if training.steps is None:
        raise UserError(
            "training.warmup_steps: how many steps training.epochs takes is not known before; "
            "give training.warmup_ratio"
        )
    if training.warmup_steps > training.steps:
        raise UserError(
            f"training.warmup_steps: got {training.warmup_steps}, expected at most "
            f"training.steps, {training.steps}"
        )
