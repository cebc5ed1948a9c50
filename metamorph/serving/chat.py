"""/v1/chat/completions: a conversation in, text and pictures out."""

import random
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from metamorph.config.keys import MAX_SEED
from metamorph.generation.events import Finished, Usage
from metamorph.generation.settings import AnswerSettings, Sampling
from metamorph.serving.answers import Collected, Deltas, usage_of
from metamorph.serving.chat_request import ChatRequest
from metamorph.serving.conversation import conversation
from metamorph.serving.engine import Question
from metamorph.serving.inbox import Inbox
from metamorph.serving.refusals import invalid
from metamorph.serving.service import BEAT, EventStream, Service, sse, while_connected
from metamorph.serving.ticket import Ticket, ticket_of

DONE = b"data: [DONE]\n\n"


async def complete(service: Service, asked: ChatRequest, request: Request) -> Response:
    """The answer, whole or streamed. Raises `Refused`."""
    service.served.check_name(asked.model)
    ticket = ticket_of(request)
    seeds = seeds_of(asked.seed, asked.n, service, ticket)
    settings = settings_of(asked, service)
    inbox = await while_connected(request, _ask(service, asked, settings, seeds))
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service.served.name,
        "system_fingerprint": None,
        "metamorph": {"seeds": seeds},
    }
    if asked.stream:
        events = _stream(service, asked, inbox, ticket, head)
        return EventStream(service, events, inbox, end=DONE)
    try:
        choices, usages = await while_connected(request, _whole(service, asked, inbox, ticket))
    finally:
        service.engine.close(inbox)
    answer = {**head, "object": "chat.completion", "choices": choices, "usage": usage_of(usages)}
    return JSONResponse(answer)


def seeds_of(seed: int | None, n: int | None, service: Service, ticket: Ticket) -> list[int]:
    """One for each of n answers, and places for them. Raises `Refused`."""
    n = n or 1
    most = min(service.limits.choices, ticket.places.total)
    if n > most:
        raise invalid("n", f"n: expected at most {most}, got {n}", "too_many")
    if seed is None:
        seed = random.randrange(MAX_SEED - n)
    if seed + n - 1 > MAX_SEED:
        raise invalid("seed", f"seed: expected at most {MAX_SEED - n + 1} with n {n}, got {seed}")
    ticket.hold(n)
    return list(range(seed, seed + n))


def settings_of(asked: ChatRequest, service: Service) -> AnswerSettings:
    """Of an answer with seed 0. Raises `Refused`."""
    limits, served = service.limits, service.served
    tokens = min(limits.tokens, served.context // 2)  # where nothing is said
    given = [value for value in (asked.max_tokens, asked.max_completion_tokens) if value]
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(asked, name)
        if value is not None and value > limits.tokens:
            raise invalid(name, f"{name}: expected at most {limits.tokens}, got {value}")
    images = asked.max_images
    wanted = asked.modalities
    if wanted is not None and "text" not in wanted:
        raise invalid(
            "modalities", "modalities: expected text, or text and image, there is no other"
        )
    if images or "image" in (wanted or ()):
        served.check_draws("max_images" if images else "modalities")
    if not served.draws or wanted == ["text"]:
        images = 0
    stop = asked.stop or ()
    return AnswerSettings(
        max_new_tokens=min(given, default=tokens),
        max_images=images,
        sampling=Sampling(
            temperature=asked.temperature or 0.0,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty or 1.0,
        ),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        drawing=served.drawing_of(asked, prefix="image_", preview_every=asked.image_previews or 0),
    )


async def _ask(
    service: Service, asked: ChatRequest, settings: AnswerSettings, seeds: list[int]
) -> Inbox:
    messages = await conversation(asked.messages, service.pictures, service.limits)
    questions = [
        Question(
            messages,
            replace(settings, sampling=replace(settings.sampling, seed=seed)),
            bool(asked.reencode),
        )
        for seed in seeds
    ]
    return await service.ask(questions, "messages")


async def _whole(
    service: Service, asked: ChatRequest, inbox: Inbox, ticket: Ticket
) -> tuple[list[dict[str, Any]], list[Usage]]:
    collected = [Collected() for _ in range(inbox.unfinished)]
    async for happened in service.events(inbox, ticket):
        if happened is not None:
            number, event = happened
            await collected[number].add(event, service.pictures)
    beside = "image" in (asked.modalities or ())
    choices = [
        {
            "index": number,
            "message": answer.message(beside),
            "finish_reason": answer.reason,
            "logprobs": None,
        }
        for number, answer in enumerate(collected)
    ]
    return choices, [answer.usage for answer in collected]


async def _stream(
    service: Service, asked: ChatRequest, inbox: Inbox, ticket: Ticket, head: dict[str, Any]
) -> AsyncIterator[bytes]:
    head = {**head, "object": "chat.completion.chunk"}
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        usage = {"usage": None} if with_usage else {}
        return sse({**head, "choices": [choice], **usage})

    deltas = [Deltas(service.pictures) for _ in range(inbox.unfinished)]
    usages = [Usage() for _ in deltas]
    for index in range(len(deltas)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for happened in service.events(inbox, ticket):
        if happened is None:
            yield BEAT
            continue
        index, event = happened
        if isinstance(event, Finished):
            usages[index] = event.usage
            yield chunk(index, {}, event.reason)
        elif (delta := await deltas[index].of(event)) is not None:
            yield chunk(index, delta)
    if with_usage:
        yield sse({**head, "choices": [], "usage": usage_of(usages)})
