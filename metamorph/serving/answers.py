"""Answers in the shape of OpenAI's chat completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metamorph.generation.events import (
    DrawingProgress,
    Event,
    Finished,
    ImageDrawn,
    ImageFeatures,
    ImageProgress,
    ImageStarted,
    TextPiece,
    Usage,
)
from metamorph.serving.pictures import PictureReader, data_url


@dataclass
class Collected:
    """One answer as it comes: text and pictures, as data URLs, in order."""

    parts: list[str | int] = field(default_factory=list)  # text, or the number of a picture
    features: dict[int, Any] = field(default_factory=dict)
    pictures: dict[int, str] = field(default_factory=dict)
    reason: str = ""
    usage: Usage = Usage()

    async def add(self, event: Event, pictures: PictureReader) -> None:
        match event:
            case TextPiece(text):
                if self.parts and isinstance(self.parts[-1], str):
                    self.parts[-1] += text
                else:
                    self.parts.append(text)
            case ImageStarted(number):
                self.parts.append(number)
            case ImageFeatures(number, features):
                self.features[number] = features
            case ImageDrawn(number, picture):
                png = await pictures.png(picture, self.features.get(number))
                self.pictures[number] = data_url(png)
            case Finished(reason, usage):
                self.reason, self.usage = reason, usage

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def message(self, beside: bool) -> dict[str, Any]:
        """With pictures `beside` the text, or text and pictures in order."""
        drawn = [part for part in self.parts if isinstance(part, str) or part in self.pictures]
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        images = [part for part in drawn if isinstance(part, int)]
        if beside:
            message["images"] = [image_part(self.pictures[n], n) for n in images]
        elif images:
            message["content"] = [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else image_part(self.pictures[part])
                for part in drawn
            ]
        return message


def image_part(url: str, index: int | None = None) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    return part if index is None else {**part, "index": index}


def usage_of(usages: Sequence[Usage]) -> dict[str, Any]:
    """Of the answers to one prompt, which counts once."""
    first = usages[0]
    answers = sum(usage.answer_tokens for usage in usages)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": answers,
        "total_tokens": first.prompt_tokens + answers,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


class Deltas:
    """One answer as it is streamed: what each event adds to it."""

    def __init__(self, pictures: PictureReader):
        self._pictures = pictures
        self._features: dict[int, Any] = {}

    async def of(self, event: Event) -> dict[str, Any] | None:
        """The `delta` of an event; None for one that tells the client nothing."""
        match event:
            case TextPiece(text):
                return {"content": text}
            case ImageStarted(number, tokens):
                return _happens("image_started", number=number, tokens=tokens)
            case ImageProgress(number, done, tokens):
                return _happens("image_progress", number=number, done=done, tokens=tokens)
            case DrawingProgress(number, step, steps, preview):
                shown = None if preview is None else data_url(await self._pictures.png(preview))
                return _happens("drawing", number=number, step=step, steps=steps, preview=shown)
            case ImageFeatures(number, features):
                self._features[number] = features
                return None
            case ImageDrawn(number, picture):
                png = await self._pictures.png(picture, self._features.pop(number, None))
                return {"images": [image_part(data_url(png), number)]}
        return None


def _happens(event: str, **values: Any) -> dict[str, Any]:
    return {"metamorph": {"event": event, **values}}
