"""Which run files torchtitan's trainer can follow; torchtitan itself is not needed to say so."""

from metamorph.config import RunConfig
from metamorph.config.reading import is_set, read_key
from metamorph.errors import UserError, shown
from metamorph.processes import world_size
from metamorph.training.rules import check_plan

STAGES = ("language", "instruct")  # align trains some rows of a matrix, which torchtitan cannot
LEAST_CHECKPOINTS = 2
# What `metamorph train` does and torchtitan's trainer does not: refused if a run file asks for it.
UNUSED = (
    "training.epochs", "training.schedule", "training.optimizer", "training.weights",
    "training.visual_input_dropout", "training.fp8_backend", "training.fp8_recipe",
    "training.fp8_all_gather", "training.lora_rank", "training.lora_alpha", "training.lora_targets",
    "training.lora_dropout", "training.validate_every", "training.validation_rows",
    "training.validation_samples", "training.max_bad_steps", "training.on_full_disk",
    "data.validation", "parallel.cpu_offload", "monitor.trackio", "monitor.samples_every",
    "monitor.samples", "monitor.decoder", "monitor.profile", "resume", "overwrite",
)  # fmt: skip


def check_run(run: RunConfig) -> None:
    """Raises `UserError`, naming the key, for what torchtitan's trainer does not do."""
    if run.stage not in STAGES:
        raise UserError(f"stage: torchtitan runs {' and '.join(STAGES)}, got {run.stage}")
    for key in UNUSED:
        if is_set(run, key):
            value = shown(read_key(run, key))
            raise UserError(
                f"{key}: torchtitan's trainer does not use it, got {value}; leave it out"
            )
    if run.training.keep_checkpoints < LEAST_CHECKPOINTS:
        raise UserError(
            f"training.keep_checkpoints: torchtitan keeps {LEAST_CHECKPOINTS} at least, got "
            f"{run.training.keep_checkpoints}"
        )
    if run.training.precision == "fp8":
        raise UserError("training.precision: expected fp32 or bf16 in torchtitan, got fp8")
    check_plan(run, world_size())
