"""The messages of a request as the model's conversation."""

from collections.abc import Sequence

from metamorph.generation.messages import ASSISTANT, SYSTEM, USER, Message, Part
from metamorph.serving.chat_request import (
    AssistantMessage,
    ChatMessage,
    ImagePart,
    SystemMessage,
    TextPart,
)
from metamorph.serving.limits import Limits
from metamorph.serving.pictures import PictureReader
from metamorph.serving.refusals import invalid

ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}


async def conversation(
    messages: Sequence[ChatMessage], pictures: PictureReader, limits: Limits
) -> list[Message]:
    """Its turns, their pictures opened one after another. Raises `Refused` beyond the limits."""
    check_limits(messages, limits)
    turns = []
    for number, message in enumerate(messages):
        parts: list[Part] = []
        for place, part in _parts(message):
            where = f"messages[{number}].{place}"
            if isinstance(part, TextPart):
                parts.append(part.text)
            elif isinstance(message, SystemMessage):
                raise invalid(where, f"{where}: a {message.role} message has no pictures")
            elif isinstance(message, AssistantMessage):
                parts.append(await pictures.drawing(part.image_url.url, where))
            else:
                parts.append(await pictures.picture(part.image_url.url, where))
        turns.append(Message(ROLES[message.role], tuple(parts)))
    return turns


def check_limits(messages: Sequence[ChatMessage], limits: Limits) -> None:
    parts = [part for message in messages for _, part in _parts(message)]
    pictures = sum(isinstance(part, ImagePart) for part in parts)
    characters = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    for what, number, most in (
        ("messages", len(messages), limits.messages),
        ("pictures", pictures, limits.pictures),
        ("characters of text", characters, limits.characters),
    ):
        if number > most:
            message = f"messages: {number} {what}, the limit is {most}"
            raise invalid("messages", message, "too_many")


def _parts(message: ChatMessage) -> list[tuple[str, TextPart | ImagePart]]:
    """Text and pictures in order, each with its place; those beside the text come after it."""
    content = message.content
    if isinstance(content, str):
        content = [TextPart(type="text", text=content)] if content else []
    beside = message.images if isinstance(message, AssistantMessage) else None
    return [
        *((f"content[{at}]", part) for at, part in enumerate(content or ())),
        *((f"images[{at}]", part) for at, part in enumerate(beside or ())),
    ]
