"""/v1/images/generations, and what the page asks for beside a conversation: what the model sees of
a picture, and a picture drawn again."""

import math
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from metamorph.config.keys import MAX_SEED
from metamorph.generation.events import (
    DrawingProgress,
    Event,
    Finished,
    ImageDrawn,
    ImageFeatures,
    TextPiece,
    Usage,
)
from metamorph.generation.messages import USER, Message
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling
from metamorph.serving.chat import seeds_of
from metamorph.serving.engine import Question
from metamorph.serving.image_requests import (
    LEAST_SIDE,
    MOST_SIDE,
    ImagesRequest,
    RedrawRequest,
    SeenRequest,
)
from metamorph.serving.inbox import Inbox
from metamorph.serving.pictures import data_url
from metamorph.serving.refusals import Refused, invalid
from metamorph.serving.service import BEAT, EventStream, Service, sse, while_connected
from metamorph.serving.ticket import Ticket, ticket_of

WORDS = 256  # tokens that an answer may spend on text beside its picture
LONGEST_SHOWN = 200  # characters of a text that came in place of a picture


@dataclass(frozen=True)
class Size:
    """What was asked for; without sides, as the decoder draws."""

    sides: tuple[int, int] | None

    def of(self, picture: Image.Image) -> Image.Image:
        if self.sides is None or self.sides == picture.size:
            return picture
        return picture.resize(self.sides, Image.Resampling.LANCZOS)


async def generate(service: Service, asked: ImagesRequest, request: Request) -> Response:
    """n pictures of a prompt, whole or streamed. Raises `Refused`."""
    service.served.check_name(asked.model)
    service.served.check_draws(None)
    ticket = ticket_of(request)
    size = size_of(asked.size)
    if len(asked.prompt) > service.limits.characters:
        message = f"prompt: expected at most {service.limits.characters} characters"
        raise invalid("prompt", message, "too_many")
    seeds = seeds_of(asked.seed, asked.n, service, ticket)
    inbox = await while_connected(request, service.ask(_questions(service, asked, seeds), "prompt"))
    if asked.stream:
        events = _stream(service, inbox, ticket, size, seeds)
        return EventStream(service, events, inbox, error="error")
    try:
        work = _whole(service, inbox, ticket, size, seeds)
        return JSONResponse(await while_connected(request, work))
    finally:
        service.engine.close(inbox)


def size_of(asked: str | None) -> Size:
    """Raises `Refused` for sides that are too small or too large."""
    if asked in (None, "auto"):
        return Size(None)
    width, height = (int(side) for side in asked.split("x"))
    for side in (width, height):
        if not LEAST_SIDE <= side <= MOST_SIDE:
            message = f"size: expected sides from {LEAST_SIDE} to {MOST_SIDE} pixels, got {asked}"
            raise invalid("size", message)
    return Size((width, height))


def _questions(service: Service, asked: ImagesRequest, seeds: list[int]) -> list[Question]:
    served = service.served
    every = 0
    steps = asked.steps or served.drawing_steps
    if asked.stream and asked.partial_images and steps:
        every = math.ceil(steps / (asked.partial_images + 1))
    drawing = served.drawing_of(asked, preview_every=every)
    messages = [Message(USER, served.drawing_prompt(asked.prompt))]
    return [
        Question(
            messages,
            AnswerSettings(
                max_new_tokens=min(served.context // 2, served.tokens + WORDS),
                max_images=1,
                sampling=Sampling(seed=seed),
                drawing=drawing,
            ),
        )
        for seed in seeds
    ]


@dataclass
class Picture:
    """One answer, of which its picture counts."""

    text: str = ""
    features: Tensor | None = None
    drawn: Image.Image | None = None
    usage: Usage = Usage()

    def add(self, event: Event) -> None:
        match event:
            case TextPiece(text):
                self.text += text
            case ImageFeatures(_, features):
                self.features = features
            case ImageDrawn(_, picture):
                self.drawn = picture
            case Finished(_, usage):
                self.usage = usage

    def check_drawn(self) -> Image.Image:
        """The picture. Raises `Refused` for an answer without one."""
        if self.drawn is None:
            said = self.text.strip()[:LONGEST_SHOWN]
            message = f"the model answered without a picture: {said!r}; ask for one in other words"
            raise Refused(422, message, param="prompt", code="no_picture")
        return self.drawn


async def _whole(
    service: Service, inbox: Inbox, ticket: Ticket, size: Size, seeds: list[int]
) -> dict[str, Any]:
    answers = [Picture() for _ in seeds]
    async for happened in service.events(inbox, ticket):
        if happened is not None:
            number, event = happened
            answers[number].add(event)
    data, native = [], (0, 0)
    for answer in answers:
        drawn = answer.check_drawn()
        native = drawn.size
        data.append({"b64_json": await service.pictures.png(size.of(drawn), answer.features)})
    return {
        "created": int(time.time()),
        "data": data,
        **_format(size.of(Image.new("1", native))),
        "usage": _usage([answer.usage for answer in answers]),
        "metamorph": {"seeds": seeds, "drawn_size": _sides(native)},
    }


async def _stream(
    service: Service, inbox: Inbox, ticket: Ticket, size: Size, seeds: list[int]
) -> AsyncIterator[bytes]:
    answers = [Picture() for _ in seeds]
    shown = [0] * len(seeds)  # partial pictures

    async def event(kind: str, picture: Image.Image, number: int, **values: Any) -> bytes:
        sized = size.of(picture)
        features = answers[number].features if kind == "completed" else None
        data = {
            "type": f"image_generation.{kind}",
            "b64_json": await service.pictures.png(sized, features),
            "created_at": int(time.time()),
            **_format(sized),
            **values,
            "metamorph": {
                "index": number,
                "seed": seeds[number],
                "drawn_size": _sides(picture.size),
            },
        }
        return sse(data, f"image_generation.{kind}")

    async for happened in service.events(inbox, ticket):
        if happened is None:
            yield BEAT
            continue
        number, come = happened
        answers[number].add(come)
        if isinstance(come, DrawingProgress) and come.preview is not None:
            index, shown[number] = shown[number], shown[number] + 1
            yield await event("partial_image", come.preview, number, partial_image_index=index)
        elif isinstance(come, Finished):
            drawn = answers[number].check_drawn()
            yield await event("completed", drawn, number, usage=_usage([come.usage]))


def _format(picture: Image.Image) -> dict[str, str]:
    return {
        "size": _sides(picture.size),
        "quality": "auto",
        "background": "opaque",
        "output_format": "png",
    }


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _usage(usages: list[Usage]) -> dict[str, Any]:
    read = usages[0].prompt_tokens
    written = sum(usage.answer_tokens for usage in usages)
    return {
        "input_tokens": read,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
        "output_tokens": written,
        "total_tokens": read + written,
    }


async def seen(service: Service, asked: SeenRequest, request: Request) -> Response:
    """What the model sees of a picture: its features, drawn. Raises `Refused`."""
    service.served.check_draws(None)
    picture = await while_connected(request, service.pictures.picture(asked.image_url, "image_url"))
    served = service.served
    return await _drawn(service, request, lambda: served.see(picture), 0, served.drawing)


async def redraw(service: Service, asked: RedrawRequest, request: Request) -> Response:
    """The features of a picture of the model, drawn once more. Raises `Refused`."""
    service.served.check_draws(None)
    settings = service.served.drawing_of(asked)
    drawing = await while_connected(
        request, service.pictures.own_drawing(asked.image_url, "image_url")
    )
    seed = random.randrange(MAX_SEED) if asked.seed is None else asked.seed
    return await _drawn(service, request, lambda: drawing.features, seed, settings)


async def _drawn(
    service: Service,
    request: Request,
    features: Callable[[], Tensor],
    seed: int,
    settings: DrawingSettings,
) -> Response:
    made: list[Tensor] = []

    def remembered() -> Tensor:
        made.append(features())
        return made[0]

    inbox = service.engine.draw(remembered, seed=seed, settings=settings)

    async def wait() -> Image.Image:
        await inbox.accepted
        answer = Picture()
        async for happened in service.events(inbox, ticket_of(request)):
            if happened is not None:
                answer.add(happened[1])
        return answer.check_drawn()

    try:
        picture = await while_connected(request, wait())
    finally:
        service.engine.close(inbox)
    png = await service.pictures.png(picture, made[0])
    return JSONResponse({"image": data_url(png), "metamorph": {"seed": seed}})
