"""Requests with the answers that they get when the server has nothing else to do."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch
from PIL import Image

from metamorph.generation.picture_files import drawing_of
from tests.generation.test_assistant import WIDTH
from tests.tiny_run import GRID

CHAT = "/v1/chat/completions"
DATA = "data: "
CLOSE = 1e-2  # rounding of float16, and of another batch
SECONDS = 120.0


@dataclass(frozen=True)
class Answer:
    """Text, and features [tokens, C] of the pictures in it."""

    text: str
    features: tuple[torch.Tensor, ...] = field(repr=False)
    finish_reason: str | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Answer)
            and (self.text, self.finish_reason) == (other.text, other.finish_reason)
            and len(self.features) == len(other.features)
            and all(
                torch.allclose(mine, its, atol=CLOSE)
                for mine, its in zip(self.features, other.features, strict=True)
            )
        )


@dataclass(frozen=True)
class Exchange:
    """A body for `/v1/chat/completions`, and what comes back; maybe another one that goes on from
    there."""

    body: dict[str, Any]
    answer: Answer
    then: "Exchange | None" = field(default=None, repr=False)


def exchanges(server: str, bodies: Sequence[dict[str, Any]]) -> list[Exchange]:
    """Asks for one after another, and goes on from every third answer. No two answers are the same,
    or they could not be told apart."""
    found, answers = [], []
    with httpx.Client(base_url=server, timeout=SECONDS) as client:
        for number, body in enumerate(bodies):
            choice = client.post(CHAT, json=body).raise_for_status().json()["choices"][0]
            then = None
            if number % 3 == 0:
                second = going_on(body, choice["message"])
                then = Exchange(second, ask(client, second))
                answers.append(then.answer)
            found.append(Exchange(body, answer_of(choice), then))
            answers.append(found[-1].answer)
    for number, one in enumerate(answers):
        assert all(one != other for other in answers[:number]), one
    return found


def going_on(body: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """The next turn of a conversation, in which the answer stands as it came, with its pictures."""
    question = {"role": "user", "content": "And what is below it?"}
    return body | {"messages": [*body["messages"], message, question], "max_tokens": 24}


def ask(client: httpx.Client, body: dict[str, Any], **options: Any) -> Answer:
    """Raises `httpx.HTTPStatusError` where there is no answer."""
    response = client.post(CHAT, json=body, **options).raise_for_status()
    return answer_of(response.json()["choices"][0])


def answer_of(choice: dict[str, Any]) -> Answer:
    """A choice of a whole answer: text alone, or parts in their order."""
    content = choice["message"]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return Answer(text, tuple(map(features_of, urls)), choice["finish_reason"])


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """What a stream says, up to its end. Raises `EOFError` if it breaks off."""
    for line in lines:
        if line == f"{DATA}[DONE]":
            return
        if line.startswith(DATA):
            yield json.loads(line.removeprefix(DATA))
    raise EOFError("the stream ended without [DONE]")


def streamed(chunks: Iterator[dict[str, Any]]) -> Answer:
    """The answer of a stream. Raises `AssertionError` with the error, where one comes."""
    text, pictures, reason = "", {}, None
    for chunk in chunks:
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            for image in choice["delta"].get("images") or ():
                pictures[image["index"]] = features_of(image["image_url"]["url"])
            reason = choice["finish_reason"] or reason
    return Answer(text, tuple(pictures[number] for number in sorted(pictures)), reason)


def features_of(url: str) -> torch.Tensor:
    """What the model predicted for a picture that it drew: [tokens, C]."""
    content = base64.b64decode(url.partition(",")[2])
    drawing = drawing_of(content, GRID**2, WIDTH, 2**20)
    assert drawing is not None and drawing.picture.size == (64, 64)
    return drawing.features


def picture_url(colour: str) -> str:
    """A small picture to ask about."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def questions(number: int) -> list[dict[str, Any]]:
    """Bodies of all kinds: short and long, greedy and sampled, with pictures and with turns."""
    colours = ("red", "green", "blue", "yellow", "black", "white")
    found = []
    for at in range(number):
        content: Any = f"Draw {at} circles. " + "Is it red? " * (at % 5 if at % 8 else 60)
        if at % 3 == 0:
            picture = {"type": "image_url", "image_url": {"url": picture_url(colours[at % 6])}}
            content = [{"type": "text", "text": content}, picture]
        turns = [{"role": "user", "content": content}]
        if at % 4 == 1:
            turns[:0] = [
                {"role": "user", "content": f"What is {at}?"},
                {"role": "assistant", "content": "blue"},
            ]
        body = {"messages": turns, "max_tokens": 8 + 5 * (at % 7), "seed": at, "image_steps": 2}
        found.append(body | {"temperature": 1.0} if at % 2 else body)
    return found
