"""Requests of lmms-eval's tasks: their words and pictures, and the messages made of them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from metamorph.errors import UserError, shown
from metamorph.generation.messages import USER, Drawing, Message, question
from metamorph.generation.settings import AnswerSettings
from metamorph.tokens import IMAGE_PLACEHOLDER

# How a task writes what is to be drawn, and what is asked then.
TO_DRAW = re.compile(r"\[GEN_PROMPT\](.*?)\[/GEN_PROMPT\]", re.DOTALL)
TO_ANSWER = re.compile(r"\[QUESTION\](.*?)\[/QUESTION\]", re.DOTALL)
QUESTION = "{question}"  # in a request for a picture: the question that it is to help with


@dataclass(frozen=True)
class Asked:
    """One request: its words, how to answer, and how to open what it shows.

    `name` says where it is from, `stem` is what files of it are called.
    """

    name: str
    stem: str
    words: str
    settings: AnswerSettings
    open_visuals: Callable[[], Sequence[Any] | None]

    def pictures(self) -> list[Image.Image]:
        """Raises `UserError` for videos and sounds."""
        found = list(self.open_visuals() or [])
        for visual in found:
            if not isinstance(visual, Image.Image):
                kind = type(visual).__name__
                raise UserError(f"{self.name}: expected pictures, got {kind} {shown(visual)}")
        return found


def parts(words: str, template: str) -> tuple[str, str]:
    """The request for a picture and the question after it, of a task that wants both. A task that
    says only what it asks has `template` as its request."""
    to_draw, to_answer = TO_DRAW.search(words), TO_ANSWER.search(words)
    if to_draw and to_answer:
        template, words = to_draw[1].strip(), to_answer[1].strip()
    return template.replace(QUESTION, words), words


def message(
    words: str, pictures: Sequence[Image.Image], drawing: Drawing | None = None
) -> tuple[Message, bool]:
    """The user's turn, and whether each `<image>` of its words is a picture's place.

    Pictures take these places, or come first where there are none, or not as many. A drawing
    follows the last picture.
    """
    places = words.count(IMAGE_PLACEHOLDER)
    shown_pictures = [*pictures, *([drawing] if drawing else [])]
    if drawing and places and places == len(pictures):
        before, mark, after = words.rpartition(IMAGE_PLACEHOLDER)
        words, places = before + mark + mark + after, places + 1
    if places in (0, len(shown_pictures)):
        return question(words, *shown_pictures), True
    return Message(USER, (*shown_pictures, words)), False
