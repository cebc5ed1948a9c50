"""The server over a model: what it answers is what the model says to whoever asks it directly."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from metamorph import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.messages import ASSISTANT, USER, Drawing, Message
from metamorph.generation.picture_files import drawing_of
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling
from metamorph.model import assemble
from metamorph.serving.app import create_app
from metamorph.serving.served import served_by
from tests.serving.scripted_server import client_of
from tests.tiny_run import GRID, let_speak, tiny_decoder

PIXELS = 64 * 64


def tiny_assistant(parts, slots: int) -> Assistant:
    """The same random model each time, see `let_speak`."""
    model, tokenizer = assemble(parts / "llama", parts / "siglip", grid=GRID)
    let_speak(model)
    options = EngineOptions(slots=slots, context=512)
    return Assistant(model, tokenizer, tiny_decoder(), options=options)


@pytest.fixture(scope="module")
def direct(parts):
    """Answers directly; the server has a model of its own, for its thread."""
    return tiny_assistant(parts, 1)


@pytest.fixture(scope="module")
def client(parts):
    assistant = tiny_assistant(parts, 3)
    served = served_by(assistant, "tiny", "Generate an image of {prompt}.")
    with client_of(create_app(assistant, served, decoder=assistant.decoder)) as client:
        yield client


def settings(seed: int, tokens: int = 30) -> AnswerSettings:
    return AnswerSettings(
        max_new_tokens=tokens,
        max_images=1,
        sampling=Sampling(seed=seed),
        drawing=DrawingSettings(num_inference_steps=2),
    )


def body(messages: list, seed: int, tokens: int = 30) -> dict:
    return {
        "messages": messages, "seed": seed, "max_tokens": tokens, "max_images": 1,
        "image_steps": 2,
    }  # fmt: skip


def read(direct: Assistant, content) -> tuple:
    """Text and drawings of an answer of the server."""
    if isinstance(content, str):
        return (content,)
    config = direct.model.config
    return tuple(
        part["text"]
        if part["type"] == "text"
        else drawing_of(
            base64.b64decode(part["image_url"]["url"].partition(",")[2]),
            config.tokens_per_image,
            config.visual_width,
            PIXELS,
        )
        for part in content
    )


def same(parts: tuple, expected: tuple) -> None:
    assert [type(part) for part in parts] == [type(part) for part in expected]
    for part, other in zip(parts, expected, strict=True):
        if isinstance(part, Drawing):
            torch.testing.assert_close(part.features, other.features, atol=2e-3, rtol=0)
            difference = differences(part.picture, other.picture)
            assert difference <= 2  # of 255: drawn in another batch
        else:
            assert part == other


def differences(picture: Image.Image, other: Image.Image) -> int:
    first, second = (
        torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in (picture, other)
    )
    return int((first.int() - second.int()).abs().max())


def test_many_clients_get_what_the_model_says_to_each(client, direct):
    questions = [(f"question {number}", number) for number in range(8)]

    def ask(question):
        text, seed = question
        asked = body([{"role": "user", "content": text}], seed)
        return client.post("/v1/chat/completions", json=asked).json()

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, questions))
    drawn = 0
    for (text, seed), answer in zip(questions, answers, strict=True):
        [reply] = direct.generate([[Message(USER, text)]], settings(seed))
        [choice] = answer["choices"]
        same(read(direct, choice["message"]["content"]), reply.parts)
        assert choice["finish_reason"] == reply.finish_reason
        assert answer["usage"]["completion_tokens"] == reply.usage.answer_tokens
        drawn += len(reply.drawings)
    assert drawn


def test_the_next_turn_reads_what_the_model_drew(client, direct):
    for number in range(20):  # until one draws
        first = [{"role": "user", "content": f"question {number}"}]
        answer = client.post("/v1/chat/completions", json=body(first, 0)).json()
        own = answer["choices"][0]["message"]
        if isinstance(own["content"], list):
            break
    more = [*first, own, {"role": "user", "content": "and now?"}]
    second = client.post("/v1/chat/completions", json=body(more, 1)).json()
    conversation = [
        Message(USER, first[0]["content"]),
        Message(ASSISTANT, read(direct, own["content"])),
        Message(USER, "and now?"),
    ]
    [reply] = direct.generate([conversation], settings(1))
    same(read(direct, second["choices"][0]["message"]["content"]), reply.parts)
    assert second["usage"]["prompt_tokens"] == reply.usage.prompt_tokens


def test_a_conversation_beyond_the_context_is_told_in_the_words_of_the_request(client):
    answer = client.post(
        "/v1/chat/completions", json=body([{"role": "user", "content": "x " * 9000}], 0)
    )
    assert answer.status_code == 400
    assert "max_tokens 30 exceed the context" in answer.json()["error"]["message"]


def test_what_the_model_sees(client, direct):
    file = io.BytesIO()
    Image.radial_gradient("L").save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    seen = client.post("/v1/metamorph/seen", json={"image_url": url}).json()["image"]
    [drawing] = read(direct, [{"type": "image_url", "image_url": {"url": seen}}])
    encoder = direct.model.encoder
    with torch.no_grad():
        expected = encoder(encoder.preprocess([Image.radial_gradient("L")]))[0]
    torch.testing.assert_close(drawing.features, expected, atol=2e-3, rtol=0)
    again = client.post("/v1/metamorph/redraw", json={"image_url": seen, "seed": 0}).json()["image"]
    [redrawn] = read(direct, [{"type": "image_url", "image_url": {"url": again}}])
    assert differences(redrawn.picture, drawing.picture) <= 8  # features were rounded
