"""OpenAI's own client talks to the server."""

import base64

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from metamorph.generation.picture_files import drawing_of
from metamorph.generation.settings import AnswerSettings, DrawingSettings, Sampling
from metamorph.serving.app import create_app
from tests.serving.running import running
from tests.serving.scripted import (
    SIDE,
    TOKENS,
    WIDTH,
    ScriptedAssistant,
    ScriptedDecoder,
    colour_of,
    features_of,
    scripted_served,
)
from tests.serving.scripted_server import chat, client_of, scripted_app


@pytest.fixture(scope="module")
def assistant():
    return ScriptedAssistant()


@pytest.fixture(scope="module")
def client(assistant):
    app = create_app(assistant, scripted_served(), decoder=ScriptedDecoder())
    with running(app) as url, OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


def asked(text: str, **fields) -> dict:
    fields = {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}
    return fields


def drawing_in(url: str):
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return drawing_of(content, TOKENS, WIDTH, SIDE * SIDE)


def test_a_text_answer_is_a_string(client):
    answer = client.chat.completions.create(**asked("how are you?"))
    assert answer.object == "chat.completion" and answer.model == "scripted"
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "You said: how are you? "
    assert choice.finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 5)


def test_a_picture_stands_in_its_place_among_the_text(client):
    answer = client.chat.completions.create(**asked("an image", seed=7))
    before, picture, after = answer.choices[0].message.content
    assert before == {"type": "text", "text": "You said: an image "}
    assert after == {"type": "text", "text": "There."}
    drawing = drawing_in(picture["image_url"]["url"])
    assert drawing.picture.getpixel((0, 0)) == colour_of(7)
    assert (drawing.features - features_of(7)).abs().max() < 1e-3


def test_pictures_stand_beside_the_text_where_modalities_ask_for_it(client):
    body = {"modalities": ["image", "text"]}
    answer = client.chat.completions.create(**asked("an image", seed=7), extra_body=body)
    message = answer.choices[0].message
    assert message.content == "You said: an image There."
    [image] = message.images
    assert drawing_in(image["image_url"]["url"]).picture.size == (SIDE, SIDE)


def test_a_stream_is_the_same_answer(client):
    events = list(
        client.chat.completions.create(
            **asked("an image", seed=7),
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"image_previews": 2},
        )
    )
    *chunks, last = events
    assert last.choices == [] and last.usage.completion_tokens == 4 + TOKENS
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "You said: an image There."
    happened = [delta.metamorph for delta in deltas if hasattr(delta, "metamorph")]
    assert happened[0] == {"event": "image_started", "number": 0, "tokens": TOKENS}
    assert [h["done"] for h in happened if h["event"] == "image_progress"] == [1, 2, 3, 4]
    drawn = [h for h in happened if h["event"] == "drawing"]
    assert [(h["step"], h["preview"] is not None) for h in drawn] == [
        (1, False), (2, True), (3, False), (4, True),
    ]  # fmt: skip
    [image] = [delta.images[0] for delta in deltas if hasattr(delta, "images")]
    assert drawing_in(image["image_url"]["url"]).picture.getpixel((0, 0)) == colour_of(7)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]


def test_n_answers_have_seeds_one_after_another(client):
    answer = client.chat.completions.create(**asked("an image", seed=7, n=3))
    assert answer.metamorph == {"seeds": [7, 8, 9]}
    urls = [choice.message.content[1]["image_url"]["url"] for choice in answer.choices]
    colours = [drawing_in(url).picture.getpixel((0, 0)) for url in urls]
    assert colours == [colour_of(7), colour_of(8), colour_of(9)]
    assert answer.usage.prompt_tokens == 2  # of one prompt
    streamed = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**asked("hello", n=3), stream=True):
        [choice] = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
    assert set(streamed.values()) == {"You said: hello "}


def test_a_seed_is_drawn_by_lot_and_told(client):
    seeds = [client.chat.completions.create(**asked("hi")).metamorph["seeds"] for _ in range(3)]
    assert len(set(map(tuple, seeds))) == 3


def test_a_conversation_goes_on_with_what_the_model_drew(client, assistant):
    first = client.chat.completions.create(**asked("an image", seed=7)).choices[0].message
    messages = [{"role": "system", "content": "Be brief."}, asked("an image")["messages"][0]]
    messages += [first.model_dump(warnings=False), {"role": "user", "content": "and another image"}]
    client.chat.completions.create(model="scripted", messages=messages)
    system, _, own, _ = assistant.conversations[-1]
    assert (system.role, system.text) == ("system", "Be brief.")
    before, drawing, after = own.parts
    assert (before, after) == ("You said: an image ", "There.")
    assert (drawing.features - features_of(7)).abs().max() < 1e-3


def test_settings_reach_the_model(client, assistant):
    body = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "max_images": 2, "image_steps": 9,
        "image_guidance": 2, "image_guidance_rescale": 0.5, "image_guidance_interval": [0.1, 1],
        "image_sampler": "unipc", "image_previews": 3, "reencode": True,
    }  # fmt: skip
    settings = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 40, "stop": ["a", "b"], "seed": 3}
    client.chat.completions.create(**asked("hello", **settings), extra_body=body)
    got, reencode = assistant.settings[-1]
    assert reencode
    assert got == AnswerSettings(
        max_new_tokens=40,
        max_images=2,
        stop=("a", "b"),
        sampling=Sampling(
            temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.5, seed=3
        ),
        drawing=DrawingSettings(9, 2, 0.5, (0.1, 1), "unipc", preview_every=3),
    )


def test_what_a_request_does_not_say_of_its_pictures_is_the_servers():
    own = DrawingSettings(4, guidance_interval=(0.1, 0.6), scheduler="ddim")
    assistant = ScriptedAssistant()
    with client_of(scripted_app(assistant, scripted_served(drawing=own))) as client:
        for fields in ({}, {"image_steps": 2, "image_guidance_interval": [0, 1]}):
            assert chat(client, "an image", **fields).status_code == 200
    drawn = [settings.drawing for settings, _ in assistant.settings]
    assert drawn == [own, DrawingSettings(2, guidance_interval=(0, 1), scheduler="ddim")]


def test_a_model_without_a_decoder_answers_with_text_alone():
    app = create_app(ScriptedAssistant(), scripted_served(drawing_steps=None))
    with running(app) as url, OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        answer = client.chat.completions.create(**asked("an image"))
        assert answer.choices[0].message.content == "You said: an image "
        for ask in (
            lambda: client.images.generate(prompt="a circle"),
            lambda: client.chat.completions.create(**asked("hi"), extra_body={"max_images": 1}),
            lambda: client.chat.completions.create(**asked("hi", modalities=["text", "image"])),
            lambda: client.chat.completions.create(**asked("hi"), extra_body={"image_steps": 4}),
        ):
            with pytest.raises(BadRequestError, match="no decoder") as refused:
                ask()
        assert refused.value.param == "image_steps"
        [model] = client.models.list()
        assert model.metamorph["draws"] is False


def test_models(client):
    [model] = client.models.list()
    assert (model.id, model.object) == ("scripted", "model")
    assert client.models.retrieve("scripted") == model
    with pytest.raises(NotFoundError):
        client.models.retrieve("gpt-5")
