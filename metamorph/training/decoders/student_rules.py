"""What the keys of stage distill say together."""

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
