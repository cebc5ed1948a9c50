"""Keys that make a step fit the memory of a GPU, by the arithmetic of `train --dry-run`."""

from dataclasses import replace

from metamorph.config import RunConfig
from metamorph.costs.memory import CHECKPOINTING
from metamorph.costs.step import GIBI
from metamorph.errors import UserError
from metamorph.init.choices import Choice, config_of
from metamorph.planning.world import plan_step

ROOM = 0.9  # of the memory: CUDA's own, NCCL's and fragments are not counted
MOST_GPUS = 1024


def fitted(choices: list[Choice], gpus: int, memory: float) -> list[Choice]:
    """The choices, with the least recomputation with which a step fits `memory` GiB of each GPU.

    Raises `UserError` if none does, with the number of GPUs that would.
    """
    config = config_of(choices)
    rows = plan_step(config, gpus).rows
    needed = 0.0
    for mode in CHECKPOINTING:
        training = replace(config.training, activation_checkpointing=mode)
        needed = _gibibytes(replace(config, training=training), gpus, rows)
        if needed < ROOM * memory:
            why = (
                f"what a block computes again in place of keeping it: a step needs "
                f"{needed:.3g} GiB of {memory:g} then, by formula"
            )
            chosen = Choice("training.activation_checkpointing", mode, why)
            at = 1 + max(i for i, c in enumerate(choices) if c.key.startswith("training."))
            return [*choices[:at], chosen, *choices[at:]]
    raise UserError(
        f"--memory: a step needs {needed:.3g} GiB of each GPU by formula, even with full "
        f"checkpointing, expected at most {ROOM:.0%} of {memory:g}; "
        f"{_more(config, gpus, memory)} or train adapters (training.lora_rank)"
    )


def _gibibytes(config: RunConfig, gpus: int, rows) -> float:
    return plan_step(config, gpus, rows).costs.total_bytes / GIBI


def _more(config: RunConfig, gpus: int, memory: float) -> str:
    """The advice to take more GPUs, as many as would do."""
    training = replace(config.training, activation_checkpointing="full")
    while (gpus := 2 * gpus) <= MOST_GPUS:
        rows_per_step = -(-training.rows_per_step // gpus) * gpus
        more = replace(config, training=replace(training, rows_per_step=rows_per_step))
        if _gibibytes(more, gpus, None) < ROOM * memory:
            return f"--gpus {gpus} would do: take them,"
    return "take a smaller model or more memory,"
