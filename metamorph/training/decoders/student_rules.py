"""What the keys of stage distill say together."""

from dataclasses import replace

from metamorph.config import RunConfig
from metamorph.errors import UserError


def check_student(config: RunConfig) -> None:
    """Raises `UserError` unless each step of a student is as many whole ones of its teacher."""
    decoder = config.decoder
    if config.stage == "distill" and decoder.teacher_steps % decoder.sampling_steps:
        raise UserError(
            f"decoder.teacher_steps: {decoder.teacher_steps} steps cannot be shared evenly by the "
            f"{decoder.sampling_steps} of the student (decoder.sampling_steps)"
        )


def with_guidance(config: RunConfig, teacher: float) -> RunConfig:
    """With the guidance that the student learns: the teacher's own, unless a key says otherwise."""
    if config.decoder.guidance_scale is not None:
        return config
    return replace(config, decoder=replace(config.decoder, guidance_scale=teacher))
