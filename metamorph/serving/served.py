"""What the server has to know of its model, beside asking it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metamorph.decoder.kinds import OpenedDecoder
from metamorph.errors import UserError, shown
from metamorph.generation.assistant import Assistant
from metamorph.generation.drawing import UnfitDrawing, check_drawing
from metamorph.generation.settings import DEFAULT_DRAWING, DrawingSettings
from metamorph.serving.fields import Fields
from metamorph.serving.refusals import Refused, invalid

PLACE = "{prompt}"
REQUESTED = {  # field of `DrawingSettings`: what requests call it
    "num_inference_steps": "steps",
    "scheduler": "sampler",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance_rescale",
    "guidance_interval": "guidance_interval",
}


@dataclass(frozen=True)
class Served:
    """One model. `see` encodes a picture to features [tokens, C]; on the engine's thread alone."""

    name: str
    created: int  # seconds since 1970
    tokens: int  # of a picture
    width: int  # C of a feature
    shrink: Callable[[Image.Image], Image.Image]  # to what the encoder takes of a picture
    see: Callable[[Image.Image], Tensor]
    context: int  # tokens of a conversation and its answer
    drawing_steps: int | None  # of the decoder where a request says nothing; None without one
    image_prompt: str = f"Generate an image of {PLACE}."
    drawing: DrawingSettings = DEFAULT_DRAWING  # where a request says nothing
    decoder: OpenedDecoder | None = None  # that requests are checked for

    @property
    def draws(self) -> bool:
        return self.drawing_steps is not None

    def check_name(self, name: str | None) -> None:
        """Raises `Refused` for the name of another model."""
        if name not in (None, self.name):
            message = f"the model {name!r} is not here, this server has {self.name!r}"
            raise Refused(404, message, param="model", code="model_not_found")

    def check_draws(self, param: str | None) -> None:
        """Raises `Refused` where nothing can be drawn."""
        if not self.draws:
            raise invalid(param, "the model of this server has no decoder, it cannot draw")

    def drawing_of(
        self, asked: Fields, *, prefix: str = "", preview_every: int = 0
    ) -> DrawingSettings:
        """What a request asks for in its fields with this prefix, and the server's own where one
        is None. Raises `Refused` for the field that the decoder cannot draw by."""
        names = {field: prefix + name for field, name in REQUESTED.items()}
        every = {field: getattr(asked, name) for field, name in names.items()}
        given: dict[str, Any] = {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in every.items()
            if value is not None
        }
        drawing = replace(self.drawing, preview_every=preview_every, **given)
        if self.decoder is not None or not self.draws:
            try:
                check_drawing(self.decoder, drawing)
            except UnfitDrawing as error:
                # Steps that are not the request's own are too many for its sampler alone.
                param = names[error.field if error.field in given else "scheduler"]
                steps = names["num_inference_steps"]
                said = str(error).replace("drawing.num_inference_steps", steps)
                raise invalid(param, said) from error
        return drawing

    def drawing_prompt(self, caption: str) -> str:
        """The request for a picture in the words of training, unless it is put so already."""
        before, after = self.image_prompt.split(PLACE)
        if before and caption.casefold().startswith(before.casefold()):
            return caption
        return before + (caption.rstrip(".") if after.startswith(".") else caption) + after


def check_image_prompt(text: str) -> None:
    """Raises `UserError` unless there is one place for what is asked for."""
    if text.count(PLACE) != 1:
        raise UserError(f"image prompt: expected {PLACE} once, got {shown(text)}")


def served_by(
    assistant: Assistant,
    name: str,
    image_prompt: str,
    drawing: DrawingSettings = DEFAULT_DRAWING,
) -> Served:
    """What there is to know of a model. Raises `UserError` as `check_image_prompt`, and for
    settings that the decoder cannot draw by, or that no decoder is there for."""
    check_image_prompt(image_prompt)
    model, decoder = assistant.model, assistant.decoder
    steps = drawing.num_inference_steps
    check_drawing(decoder, drawing)
    if decoder is not None:
        steps = decoder.config.sampling_steps if steps is None else steps
    encoder = model.encoder

    @torch.no_grad()
    def see(image: Image.Image) -> Tensor:
        return encoder(encoder.preprocess([image]))[0]

    return Served(
        name=name,
        created=int(time.time()),
        tokens=model.config.tokens_per_image,
        width=model.config.visual_width,
        shrink=encoder.square,
        see=see,
        context=assistant.engine.context,
        drawing_steps=None if decoder is None else steps,
        image_prompt=image_prompt,
        drawing=drawing,
        decoder=decoder,
    )
