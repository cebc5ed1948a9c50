"""What a body may say: faults are named, and no body whatever makes the server fail."""

import base64
import io
import json
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metamorph.config.keys import MAX_SEED
from metamorph.generation.messages import Drawing
from metamorph.generation.picture_files import png_bytes
from metamorph.serving.chat_request import ChatRequest
from metamorph.serving.image_requests import ImagesRequest
from metamorph.serving.limits import Limits
from tests.serving.scripted import SIDE, TOKENS, ScriptedAssistant, own_picture
from tests.serving.scripted_server import asked, chat, client_of, error_of, scripted_app

LIMITS = Limits(tokens=50, messages=5, characters=2000, pictures=3, pixels=10_000, choices=3)


@pytest.fixture(scope="module")
def assistant():
    return ScriptedAssistant()


@pytest.fixture(scope="module")
def client(assistant):
    with client_of(scripted_app(assistant, limits=LIMITS)) as client:
        yield client


def picture(form: str = "PNG", size: tuple[int, int] = (8, 8), **options) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 0, 0)).save(file, form, **options)
    return url_of(file.getvalue(), form.lower())


def url_of(content: bytes, form: str = "png") -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def with_picture(url: str, role: str = "user") -> dict:
    part = {"type": "image_url", "image_url": {"url": url}}
    message = {"role": role, "content": [{"type": "text", "text": "see"}, part]}
    return {"messages": [message] if role == "user" else [message, *asked("and?")["messages"]]}


def refused(client, body, status: int = 400, route: str = "/v1/chat/completions") -> dict:
    answer = client.post(route, json=body)
    assert answer.status_code == status, answer.text
    return error_of(answer)


HELLO = asked("hello")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": "x", "naem": "y"}]}, "messages[0].naem"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
         "messages[0].tool_calls"),
        (HELLO | {"temprature": 1}, "temprature"),
        (HELLO | {"temperature": "1"}, "temperature"),
        (HELLO | {"temperature": -1}, "temperature"),
        (HELLO | {"temperature": True}, "temperature"),
        (HELLO | {"top_p": 0}, "top_p"),
        (HELLO | {"top_p": 1.5}, "top_p"),
        (HELLO | {"top_k": 0}, "top_k"),
        (HELLO | {"top_k": 1.0}, "top_k"),
        (HELLO | {"min_p": 2}, "min_p"),
        (HELLO | {"repetition_penalty": 0}, "repetition_penalty"),
        (HELLO | {"max_tokens": 0}, "max_tokens"),
        (HELLO | {"max_tokens": 51}, "max_tokens"),
        (HELLO | {"max_completion_tokens": 10**30}, "max_completion_tokens"),
        (HELLO | {"n": 0}, "n"),
        (HELLO | {"n": 4}, "n"),
        (HELLO | {"seed": -1}, "seed"),
        (HELLO | {"seed": MAX_SEED + 1}, "seed"),
        (HELLO | {"seed": MAX_SEED, "n": 2}, "seed"),
        (HELLO | {"stop": ""}, "stop"),
        (HELLO | {"stop": ["a", ""]}, "stop[1]"),
        (HELLO | {"stop": ["a"] * 17}, "stop"),
        (HELLO | {"stop": 3}, "stop"),
        (HELLO | {"modalities": ["audio"]}, "modalities[0]"),
        (HELLO | {"modalities": ["image"]}, "modalities"),
        (HELLO | {"modalities": []}, "modalities"),
        (HELLO | {"stream": "yes"}, "stream"),
        (HELLO | {"stream_options": {"include": True}}, "stream_options.include"),
        (HELLO | {"image_steps": 0}, "image_steps"),
        (HELLO | {"image_steps": 1001}, "image_steps"),
        (HELLO | {"image_guidance": -1}, "image_guidance"),
        (HELLO | {"image_guidance_rescale": 1.1}, "image_guidance_rescale"),
        (HELLO | {"image_guidance_interval": [0]}, "image_guidance_interval"),
        (HELLO | {"image_guidance_interval": [0, 2]}, "image_guidance_interval[1]"),
        (HELLO | {"image_guidance_interval": [0.5, 0.1]}, "image_guidance_interval"),
        (HELLO | {"image_sampler": "flow_match_euler"}, "image_sampler"),
        (HELLO | {"max_images": -1}, "max_images"),
        (HELLO | {"tools": [{"type": "function"}]}, "tools"),
        (HELLO | {"tool_choice": "required"}, "tool_choice"),
        (HELLO | {"functions": [{}]}, "functions"),
        (HELLO | {"logprobs": True}, "logprobs"),
        (HELLO | {"top_logprobs": 5}, "top_logprobs"),
        (HELLO | {"logit_bias": {"5": 1}}, "logit_bias"),
        (HELLO | {"frequency_penalty": 0.5}, "frequency_penalty"),
        (HELLO | {"presence_penalty": -1}, "presence_penalty"),
        (HELLO | {"response_format": {"type": "json_object"}}, "response_format.type"),
        (HELLO | {"reasoning_effort": "high"}, "reasoning_effort"),
        (HELLO | {"audio": {"voice": "alloy"}}, "audio"),
        (HELLO | {"prediction": {"type": "content"}}, "prediction"),
        (HELLO | {"web_search_options": {}}, "web_search_options"),
        ({"messages": HELLO["messages"] * 6}, "messages"),
        (asked("x" * 2001), "messages"),
        (asked("REFUSE"), "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "system", "content": with_picture(picture())["messages"][0]
                        ["content"]}]}, "messages[0].content[1]"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_field(client, body, param):
    error = refused(client, body)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error" and error["code"]
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None},
        {"logprobs": False, "top_logprobs": None, "logit_bias": {}, "response_format": None},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "temperature": 1, "top_p": 1},
        {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None, "n": 1},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"stop": None, "seed": None, "max_tokens": 5, "max_completion_tokens": 50},
        {"reasoning_effort": None, "verbosity": "medium", "prompt_cache_key": "k"},
    ],
)
def test_what_asks_for_nothing_else_is_taken(client, fields):
    assert chat(client, "hello", **fields).status_code == 200


def test_another_model_is_not_here(client):
    error = refused(client, HELLO | {"model": "gpt-5"}, status=404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_max_tokens_cuts_the_answer(client):
    answer = chat(client, "one two three", max_tokens=3, max_completion_tokens=40).json()
    assert answer["choices"][0]["message"]["content"] == "You said: one "
    assert answer["choices"][0]["finish_reason"] == "length"


def test_text_alone_is_asked_for_by_modalities(client):
    answer = chat(client, "an image", modalities=["text"]).json()
    assert answer["choices"][0]["message"]["content"] == "You said: an image "


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("GIF", {"save_all": 1}),
    ],
)
def test_pictures_of_the_usual_formats_are_read(client, assistant, form, options):
    answer = client.post("/v1/chat/completions", json=with_picture(picture(form, **options)))
    assert answer.json()["choices"][0]["message"]["content"] == "You said: see (with 1 pictures) "
    [message] = assistant.conversations[-1]
    text, read = message.parts
    assert text == "see" and read.size == (SIDE, SIDE)  # as small as the encoder takes it
    assert all(abs(a - b) < 8 for a, b in zip(read.getpixel((3, 3)), (200, 0, 0), strict=True))


def huge_png() -> bytes:
    """Says that it has 30000 x 30000 pixels."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    ihdr = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + ihdr


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "data:", "data:image/png;base64,", "data:image/png;base64,!!!!", "data:,hello",
        "data:text/html;base64,aGVsbG8=", url_of(b"hello"), url_of(huge_png()),
        url_of(b"\x89PNG\r\n\x1a\n" + b"\0" * 50), url_of(b"GIF89a"), url_of(b"\xff\xd8\xff\xe0"),
        url_of(b"RIFF\0\0\0\0WEBP"), url_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        picture("BMP"), picture("TIFF"), picture(size=(101, 100)),
        "file:///etc/passwd", "http://localhost/", "https://example.com/a.png", "//x", "https://[",
    ],
    ids=range(22),
)  # fmt: skip
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_what_is_no_picture(client, url, role):
    error = refused(client, with_picture(url, role))
    assert error["param"] == "messages[0].content[1]"
    if role == "user":
        assert refused(client, {"image_url": url}, route="/v1/metamorph/seen")["param"]


def test_a_fault_of_a_picture_beside_the_text(client):
    own = {"role": "assistant", "content": "x", "images": [{"type": "image_url", "image_url": {}}]}
    assert refused(client, {"messages": [own]})["param"] == "messages[0].images[0].image_url.url"
    own["images"][0]["image_url"]["url"] = "x"
    assert refused(client, {"messages": [own]})["param"] == "messages[0].images[0]"


def test_too_many_pictures(client):
    content = with_picture(picture())["messages"][0]["content"] * 4
    assert refused(client, {"messages": [{"role": "user", "content": content}]})


@pytest.mark.parametrize("beside", [False, True])
def test_a_picture_of_the_model_comes_back_as_what_it_predicted(client, assistant, beside):
    drawing = own_picture(4)
    part = {"type": "image_url", "index": 0, "image_url": {"url": url_of(png_bytes(drawing))}}
    own = {"role": "assistant", "content": "Here."} | ({"images": [part]} if beside else {})
    if not beside:
        own["content"] = [{"type": "text", "text": "Here."}, part]
    messages = [*asked("an image")["messages"], own, *asked("again")["messages"]]
    assert client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    text, read = assistant.conversations[-1][1].parts
    assert text == "Here." and isinstance(read, Drawing)
    assert (read.features - drawing.features).abs().max() < 1e-3


def test_damaged_features_are_refused(client):
    content = png_bytes(own_picture(4))
    at = content.index(b"mmFT") + 20
    broken = content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
    assert refused(client, with_picture(url_of(broken), "assistant"))["param"]


def test_an_answer_can_be_sent_back_as_it_came(client):
    """As clients of OpenAI do, nulls and all."""
    message = chat(client, "an image").json()["choices"][0]["message"]
    nulls = dict.fromkeys(("audio", "function_call", "tool_calls", "annotations", "refusal"))
    messages = [*asked("an image")["messages"], nulls | message, *asked("more")["messages"]]
    answer = client.post("/v1/chat/completions", json={"messages": messages})
    assert "(with 1 pictures)" in answer.json()["choices"][0]["message"]["content"]


HALF = "\ud800"  # of a character: JSON can say it, UTF-8 cannot
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(HALF),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["type", "text", HALF]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
PART = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image_url", "x"]) | VALUES,
        "text": st.text(max_size=20) | VALUES,
        "image_url": st.fixed_dictionaries({"url": st.sampled_from([picture(), "x"])}) | VALUES,
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUES},
    optional={
        "content": st.text(max_size=20) | st.lists(PART, max_size=3) | VALUES,
        "images": st.lists(PART, max_size=2) | VALUES,
        "name": VALUES,
    },
)


def bodies(model, required):
    """Objects shaped like a request, with a few fields whose values are anything."""
    others = sorted(set(model.model_fields) - set(required))
    fields = st.dictionaries(st.sampled_from(others) | st.text(max_size=8), VALUES, max_size=3)
    return st.builds(lambda a, b: a | b, st.fixed_dictionaries(required), fields)


ANYTHING = {
    "/v1/chat/completions": bodies(
        ChatRequest, {"messages": st.lists(MESSAGE, max_size=3) | VALUES}
    ),
    "/v1/images/generations": bodies(ImagesRequest, {"prompt": st.text(max_size=20) | VALUES}),
    "/v1/metamorph/seen": st.fixed_dictionaries({"image_url": VALUES}),
    "/v1/metamorph/redraw": st.fixed_dictionaries({"image_url": VALUES}),
}


@pytest.mark.parametrize("route", ANYTHING)
@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_body_makes_the_server_fail(client, route, data):
    body = data.draw(ANYTHING[route] | VALUES)
    content = json.dumps(body)  # NaN and half characters as Python writes them
    answer = client.post(route, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert error_of(answer)


@pytest.mark.parametrize(
    "body",
    [
        {HALF: 1}, asked(HALF), HELLO | {"model": HALF}, HELLO | {"stop": HALF},
        {"messages": [{"role": HALF}]}, {"messages": [{"role": "user", "content": "x", HALF: 1}]},
        HELLO | {"user": HALF}, with_picture(HALF), with_picture(f"data:image/{HALF}"),
        HELLO | {"metadata": {HALF: HALF}}, HELLO | {"tools": HALF}, {"prompt": HALF},
        {"prompt": "x", "size": HALF},
        HELLO | {"temperature": float("inf")}, HELLO | {"n": 10**4000}, asked("\0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/images/generations"])
def test_half_characters_and_endless_numbers(client, body, route):
    content = json.dumps(body).encode()
    answer = client.post(route, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert error_of(answer)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_no_bytes_make_the_server_fail(client, content):
    answer = client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    assert error_of(answer)


def test_the_model_drew_its_own_number_of_tokens(client):
    answer = chat(client, "an image").json()
    assert answer["usage"]["completion_tokens"] == 4 + TOKENS
