"""A key that the run does not use, or that needs another one, is refused."""

from collections.abc import Callable

from metamorph.config import RunConfig
from metamorph.config.reading import Use, is_set, iter_unused
from metamorph.data.uses import check_data
from metamorph.errors import UserError

# Keys of which nothing is used without another one: what that is, and whether a run has it.
NEEDS: tuple[tuple[tuple[str, ...], str, Callable[[RunConfig], object]], ...] = (
    (
        ("training.lora_alpha", "training.lora_targets", "training.lora_dropout"),
        "training.lora_rank above 0",
        lambda run: run.training.lora_rank,
    ),
    (
        ("training.validate_every", "training.validation_rows", "training.validation_samples"),
        "data.validation, the samples to measure on",
        lambda run: run.data.validation,
    ),
    (
        ("data.verify_features",),
        "data.features or decoder.latents, which are compared",
        lambda run: run.data.features or run.decoder.latents,
    ),
    (
        ("decoder.adversarial_start",),
        "decoder.adversarial_weight above 0, for without it there is no critic",
        lambda run: run.decoder.adversarial_weight,
    ),
    (
        ("monitor.samples", "monitor.decoder"),
        "monitor.samples_every above 0, for without it nothing is drawn",
        lambda run: run.monitor.samples_every,
    ),
)


def check_uses(config: RunConfig, own_source: bool = False) -> None:
    """Raises `UserError` for a key that the stage, the kind of decoder or the data do not use, or
    that needs another one. `own_source`: see `check_rules`."""
    uses: list[Use] = [("stages", f"stage {config.stage}", {config.stage})]
    if config.stage == "decoder":
        kind = config.decoder.kind
        uses.append(("kinds", f"decoder.kind {kind}", {kind}))
    for key, words, users in iter_unused(config, *uses):
        raise UserError(f"{key}: {words} does not use it (only {', '.join(users)}); leave it out")
    check_data(config.data, own_source)
    for keys, other, has in NEEDS:
        for key in keys:
            if is_set(config, key) and not has(config):
                raise UserError(f"{key}: it needs {other}")
    if config.resume and config.overwrite:
        raise UserError(
            "overwrite: resume goes on with what is in the run folder; leave out one of the two"
        )
