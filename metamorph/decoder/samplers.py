"""How a UNet's predictions take noise to a picture: diffusers' schedulers, by short names.

This file needs diffusers alone, for `metamorph.decoder.standalone` takes it to decoders' folders.
"""

import copy
from collections.abc import Mapping
from typing import Any

SAMPLERS = {  # the name: the class of diffusers
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
}
FLOW_MATCHING = "flow_match_euler"
NO_FLOW = (
    f"{FLOW_MATCHING} follows the velocity that a flow-matching transformer predicts, and the "
    f"decoder is a UNet of another noise schedule; expected one of {', '.join(SAMPLERS)}"
)
# None has noise of its own, so that features and first noise make the picture alone, and each goes
# by the clean latents that it expects, which previews show. Latents are not in [-1, 1], to be
# clipped; and DDIM takes the steps that it was set no other way than `trailing`.
SETTINGS: dict[str, dict[str, Any]] = {
    "dpm++": {"algorithm_type": "dpmsolver++", "solver_order": 2},
    "unipc": {"predict_x0": True},
    "ddim": {"clip_sample": False, "timestep_spacing": "trailing"},
    "euler": {},
}


def sampler(name: str, noise_schedule: Mapping[str, Any]) -> Any:
    """The scheduler of this name for the noise schedule that a UNet was trained with, the config of
    another scheduler. Raises `ValueError` for a name that is none of `SAMPLERS`."""
    import diffusers  # which takes seconds

    if name == FLOW_MATCHING:
        raise ValueError(f"scheduler: {NO_FLOW}")
    if name not in SAMPLERS:
        raise ValueError(f"scheduler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
    settings = SETTINGS[name]
    if noise_schedule.get("rescale_betas_zero_snr"):  # it starts from noise alone, the last step
        settings = {**settings, "timestep_spacing": "trailing"}
    return getattr(diffusers, SAMPLERS[name]).from_config(noise_schedule, **settings)


def check_steps(name: str, scheduler: Any, steps: int) -> None:
    """Raises `ValueError`, which begins with `name`, unless a scheduler can draw in so many steps.
    Some round two of them to one timestep, where their formulas divide by zero."""
    trained = scheduler.config.num_train_timesteps
    if steps > trained:
        raise ValueError(f"{name}: expected at most {trained}, got {steps}")
    trial = copy.copy(scheduler)
    trial.set_timesteps(steps)  # on the host, where looking at them makes no device wait
    if len(trial.timesteps.unique()) < steps:
        raise ValueError(
            f"{name}: {steps} steps of this sampler would take a timestep twice, expected fewer"
        )
