"""What the server has to know of its model, beside asking it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from metamorph.errors import UserError, shown
from metamorph.generation.assistant import Assistant
from metamorph.serving.refusals import Refused, invalid

PLACE = "{prompt}"


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


def served_by(assistant: Assistant, name: str, image_prompt: str) -> Served:
    """What there is to know of a model. Raises `UserError` as `check_image_prompt`."""
    check_image_prompt(image_prompt)
    model, decoder = assistant.model, assistant.decoder
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
        drawing_steps=None if decoder is None else decoder.config.sampling_steps,
        image_prompt=image_prompt,
    )
