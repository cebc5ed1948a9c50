"""A conversation as its turns, whatever they hold: text, pictures, and the model's own drawings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from PIL import Image
from torch import Tensor

from metamorph.data.conversation import Turn
from metamorph.errors import UserError
from metamorph.model.chat_template import ASSISTANT, SYSTEM, USER
from metamorph.tokens import IMAGE_PLACEHOLDER

__all__ = ["ASSISTANT", "SYSTEM", "USER", "Drawing", "Message", "Part", "placed", "question"]

Picture = TypeVar("Picture")  # a picture, or what will be one


@dataclass(frozen=True)
class Drawing:
    """A picture that the model made, as it made it: features [tokens, C], and the pixels that a
    decoder drew of them, if one did.

    In a later turn the model reads the features that it predicted, not the pixels again: what it
    meant, without the decoder's mistakes.
    """

    features: Tensor = field(repr=False)
    picture: Image.Image | None = field(default=None, repr=False)


Part = str | Image.Image | Drawing


@dataclass(frozen=True)
class Message:
    """One turn: `role` is USER, ASSISTANT or SYSTEM; text and pictures in the order in which they
    are read. Text is plain text: `<image>` in it stands for nothing."""

    role: str
    content: str | tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """All its text, without the pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Image.Image | Drawing, ...]:
        return tuple(part for part in self.parts if not isinstance(part, str))

    @property
    def turn(self) -> Turn:
        """The same as the data of training has it, its pictures in order apart."""
        pieces = [""]
        for part in self.parts:
            if isinstance(part, str):
                pieces[-1] += part
            else:
                pieces.append("")
        return Turn.of_pieces(self.role, tuple(pieces))


def question(text: str, *pictures: Image.Image | Drawing) -> Message:
    """A user's turn as the data of training writes it, see `placed`. Raises `UserError`."""
    return Message(USER, placed(text, pictures))


def placed(text: str, pictures: Sequence[Picture]) -> tuple[str | Picture, ...]:
    """Text with each `<image>` in it replaced by the next picture; without any the pictures come
    first. Raises `UserError` if the numbers differ."""
    first, *others = text.split(IMAGE_PLACEHOLDER)
    if not others:
        return (*pictures, text)
    if len(others) != len(pictures):
        raise UserError(
            f"prompt: {len(others)} {IMAGE_PLACEHOLDER} placeholders but {len(pictures)} images"
        )
    parts: list[str | Picture] = [first]
    for picture, after in zip(pictures, others, strict=True):
        parts += [picture, after]
    return tuple(part for part in parts if part != "")
