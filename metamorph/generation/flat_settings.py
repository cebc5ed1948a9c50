"""Settings of an answer as one flat mapping, under the names of the command line's options."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from metamorph.errors import UserError, shown
from metamorph.generation.settings import AnswerSettings, DrawingSettings

DRAWING = {  # the name here: that of the field of `DrawingSettings`
    "drawing_steps": "num_inference_steps",
    "sampler": "scheduler",
    "guidance": "guidance_scale",
    "guidance_rescale": "guidance_rescale",
    "guidance_interval": "guidance_interval",
}


def flat(settings: AnswerSettings) -> dict[str, Any]:
    """All settings but how often a picture is shown on the way; JSON-able."""
    drawing = settings.drawing or DrawingSettings()
    return {
        "max_new_tokens": settings.max_new_tokens,
        "max_images": settings.max_images,
        "stop": list(settings.stop),
        **asdict(settings.sampling),
        **{name: getattr(drawing, field) for name, field in DRAWING.items()},
        "guidance_interval": list(drawing.guidance_interval),
    }


def replaced(settings: AnswerSettings, changes: Mapping[str, Any]) -> AnswerSettings:
    """The settings with some of another value, by the names that `flat` gives them. Raises
    `UserError` for a value that cannot be."""
    changes = dict(changes)
    stop = changes.pop("stop", settings.stop)
    if not isinstance(stop, str | list | tuple):
        raise UserError(f"stop: expected text or a list of texts, got {shown(stop)}")
    drawing = settings.drawing or DrawingSettings()
    asked = {field: changes.pop(name) for name, field in DRAWING.items() if name in changes}
    if isinstance(asked.get("guidance_interval"), list):  # as JSON has it
        asked["guidance_interval"] = tuple(asked["guidance_interval"])
    sampling = {name: changes.pop(name) for name in asdict(settings.sampling) if name in changes}
    return replace(
        settings,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        sampling=replace(settings.sampling, **sampling),
        drawing=replace(drawing, **asked),
        **changes,
    )
