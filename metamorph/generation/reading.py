"""Conversations to prompts: turns as tokens, pictures as features."""

import hashlib
from collections import OrderedDict, abc
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metamorph.data.conversation import ChatEncoder, Document, Sample
from metamorph.errors import SampleError, UserError
from metamorph.generation.history import image_key
from metamorph.generation.messages import USER, Drawing, Message
from metamorph.generation.prompt import Prompt
from metamorph.model.unified import MetaMorph
from metamorph.pixels import as_shown

REMEMBERED = 128  # pictures whose features are kept, for the next turns of their conversations


class Reader:
    """Reads conversations for one model: `document` their tokens, `prompt` their pictures too."""

    def __init__(self, model: MetaMorph, encoder: ChatEncoder):
        self.model, self.encoder = model, encoder
        self._features: OrderedDict[int, Tensor] = OrderedDict()

    def document(self, messages: abc.Sequence[Message]) -> Document:
        """The conversation as tokens, up to how a response begins. `UserError` for turns out of
        order, and for one that does not end with the user's."""
        turns = tuple(message.turn for message in messages)
        images: Any = tuple(picture for message in messages for picture in message.pictures)
        if not turns or turns[-1].role != USER:
            raise UserError("conversation: expected one that ends with the user's turn")
        try:
            return self.encoder.encode_prompt(Sample("prompt", turns, images))
        except SampleError as error:
            raise UserError(f"conversation: {error}") from error

    def prompt(self, document: Document, reencode: bool) -> Prompt:
        """The same with the features of its pictures. Own drawings are read as the features that
        the model predicted; with `reencode` from their pixels. Raises `UserError`."""
        features, keys = [], []
        for picture in document.images:
            if isinstance(picture, Drawing) and not reencode:
                features.append(self._checked(picture.features))
                keys.append(image_key(picture.features))
            else:
                pixels = picture.picture if isinstance(picture, Drawing) else picture
                if not isinstance(pixels, Image.Image):
                    raise UserError("conversation: a drawing without pixels cannot be read again")
                shown = as_shown(pixels)
                keys.append(_pixel_key(shown))
                features.append(self._seen(keys[-1], shown))
        positions = [place for first, end in document.spans for place in range(first, end)]
        stacked = torch.stack(features) if features else None
        spans = document.bidirectional_spans
        return Prompt(document.token_ids, positions, stacked, spans, image_keys=keys)

    def _checked(self, features: Tensor) -> Tensor:
        shape = [self.model.config.tokens_per_image, self.model.config.visual_width]
        if list(features.shape) != shape:
            raise UserError(
                f"conversation: a drawing has features {list(features.shape)}, but the model's "
                f"are {shape}"
            )
        return features.to(self.model.projector.linear_1.weight.device, torch.float32)

    def _seen(self, key: int, picture: Image.Image) -> Tensor:
        """Features [tokens, C] of a picture, from the encoder or from memory."""
        if key not in self._features:
            encoder = self.model.encoder
            pixels = encoder.preprocess([picture])
            [features] = encoder(pixels.to(self.model.projector.linear_1.weight.device))
            self._features[key] = features.float()
            if len(self._features) > REMEMBERED:
                self._features.popitem(last=False)
        self._features.move_to_end(key)
        return self._features[key]


def _pixel_key(picture: Image.Image) -> int:
    """An integer below 2**62 that only equal pictures share, in RGB as a viewer shows them: what
    else a picture has, such as a palette, is in those pixels."""
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 2
