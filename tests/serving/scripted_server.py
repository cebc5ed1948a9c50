"""A server of the stand-ins, and clients of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
from fastapi import FastAPI

from metamorph.serving.app import create_app
from metamorph.serving.served import Served
from tests.serving.running import running
from tests.serving.scripted import ScriptedAssistant, ScriptedDecoder, scripted_served


def scripted_app(
    assistant: ScriptedAssistant | None = None, served: Served | None = None, **options: Any
) -> FastAPI:
    options = {"decoder": ScriptedDecoder(), **options}
    return create_app(assistant or ScriptedAssistant(), served or scripted_served(), **options)


@contextlib.contextmanager
def client_of(app, **headers: str) -> Iterator[httpx.Client]:
    with running(app) as url, httpx.Client(base_url=url, headers=headers, timeout=20) as client:
        yield client


def asked(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a request of one question."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def chat(client: httpx.Client, text: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=asked(text, **fields))


def error_of(response: httpx.Response) -> dict[str, Any]:
    """OpenAI's form, whatever went wrong."""
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"].isprintable()
    return body["error"]
