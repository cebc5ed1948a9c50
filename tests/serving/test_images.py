"""Pictures without a conversation, through OpenAI's own client, and what the page asks for."""

import base64
import io
from types import SimpleNamespace

import pytest
from openai import BadRequestError, OpenAI, UnprocessableEntityError
from PIL import Image

from metamorph.errors import UserError
from metamorph.generation.picture_files import drawing_of, png_bytes
from metamorph.generation.settings import DrawingSettings
from metamorph.serving.served import served_by
from tests.serving.running import running
from tests.serving.scripted import (
    PLAIN,
    SIDE,
    STEPS,
    TOKENS,
    WIDTH,
    ScriptedAssistant,
    colour_of,
    features_of,
    own_picture,
    scripted_served,
    seen_by,
)
from tests.serving.scripted_server import client_of, error_of, scripted_app
from tests.tiny_run import tiny_decoder, tiny_one_pass


@pytest.fixture(scope="module")
def assistant():
    return ScriptedAssistant()


@pytest.fixture(scope="module")
def client(assistant):
    app = scripted_app(assistant)
    with running(app) as url, OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


def png_of(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def test_n_pictures_have_seeds_one_after_another(client):
    answer = client.images.generate(prompt="a red circle", n=3, extra_body={"seed": 40})
    colours = [png_of(image.b64_json).getpixel((0, 0)) for image in answer.data]
    assert colours == [colour_of(40), colour_of(41), colour_of(42)]
    assert answer.metamorph == {"seeds": [40, 41, 42], "drawn_size": f"{SIDE}x{SIDE}"}
    assert answer.size == f"{SIDE}x{SIDE}" and answer.output_format == "png"
    assert answer.usage.output_tokens > 3 * TOKENS


def test_the_prompt_is_put_in_the_words_of_training_once(client, assistant):
    client.images.generate(prompt="a red circle.")
    client.images.generate(prompt="Generate an image of a red circle.")
    asked = [messages[-1].text for messages in assistant.conversations[-2:]]
    assert asked == ["Generate an image of a red circle."] * 2


def test_a_size_is_what_the_picture_is_resized_to(client):
    answer = client.images.generate(prompt="a circle", size="64x48")
    [image] = answer.data
    assert png_of(image.b64_json).size == (64, 48)
    assert (answer.size, answer.metamorph["drawn_size"]) == ("64x48", f"{SIDE}x{SIDE}")


def test_how_a_picture_is_drawn_can_be_asked_for(client, assistant):
    fields = {"steps": 3, "sampler": "ddim", "guidance": 2.0, "guidance_interval": [0, 0.5]}
    client.images.generate(prompt="a circle", extra_body=fields)
    [settings, _] = assistant.settings[-1]
    assert settings.drawing == DrawingSettings(3, 2.0, 0.0, (0, 0.5), "ddim")
    with pytest.raises(BadRequestError) as error:
        client.images.generate(prompt="a circle", extra_body={"guidance_interval": [0.5, 0]})
    assert error.value.param == "guidance_interval"


def test_a_server_of_a_one_pass_decoder_takes_no_settings_of_diffusion():
    assistant = SimpleNamespace(model=None, decoder=tiny_one_pass())
    with pytest.raises(UserError, match="draws in one pass and takes no sampler, got 'unipc'"):
        served_by(assistant, "tiny", "{prompt}", DrawingSettings(scheduler="unipc"))


@pytest.mark.parametrize(
    ("decoder", "own", "asked", "said"),
    [
        (tiny_one_pass, {}, {"steps": 20}, "takes no steps, got 20"),
        (tiny_one_pass, {}, {"sampler": "ddim"}, "takes no sampler, got 'ddim'"),
        (tiny_one_pass, {}, {"guidance": 2.0}, "takes no guidance, got 2.0"),
        (tiny_one_pass, {}, {"guidance_rescale": 0.5}, "takes no guidance rescale"),
        (tiny_one_pass, {}, {"guidance_interval": [0, 0.5]}, "takes no guidance interval"),
        (tiny_decoder, {}, {"steps": 1000}, "steps: 1000 steps of this sampler would take a time"),
        (tiny_decoder, {"num_inference_steps": 1000, "scheduler": "ddim"}, {"sampler": "unipc"},
         "steps: 1000 steps of this sampler"),
    ],
)  # fmt: skip
def test_what_a_decoder_cannot_draw_by_is_refused_by_its_field(decoder, own, asked, said):
    """Before anything is answered, and for no other fields of the request."""
    [name] = asked
    assistant = ScriptedAssistant()
    served = scripted_served(decoder=decoder(), drawing=DrawingSettings(**own))
    hello = {"messages": [{"role": "user", "content": "hello"}]}
    with client_of(scripted_app(assistant, served)) as client:
        for path, body, prefix in (
            ("chat/completions", hello, "image_"),
            ("images/generations", {"prompt": "a circle"}, ""),
            ("metamorph/redraw", {"image_url": "data:,"}, ""),
        ):
            body = body | {prefix + field: value for field, value in asked.items()}
            answer = client.post(f"/v1/{path}", json=body)
            error = error_of(answer)
            assert (answer.status_code, error["param"]) == (400, prefix + name)
            assert said in error["message"] and "drawing." not in error["message"]
        assert client.post("/v1/chat/completions", json=hello).status_code == 200
    assert len(assistant.settings) == 1


@pytest.mark.parametrize("size", ["8x64", "64x5000", "64", "large", "064x64", "64x64x64", ""])
def test_no_other_size(client, size):
    with pytest.raises(BadRequestError) as error:
        client.images.generate(prompt="a circle", size=size)
    assert error.value.param == "size"


def test_a_picture_carries_its_features(client):
    [image] = client.images.generate(prompt="a circle", extra_body={"seed": 3}).data
    drawing = drawing_of(base64.b64decode(image.b64_json), TOKENS, WIDTH, SIDE * SIDE)
    assert (drawing.features - features_of(3)).abs().max() < 1e-3


def test_a_stream_shows_the_picture_as_it_is_drawn(client):
    fields = {"seed": 5, "steps": 6}
    events = list(
        client.images.generate(
            prompt="a circle", stream=True, partial_images=2, n=2, extra_body=fields
        )
    )
    for index, seed in enumerate((5, 6)):
        own = [event for event in events if event.metamorph["index"] == index]
        assert [event.type.removeprefix("image_generation.") for event in own] == [
            "partial_image", "partial_image", "partial_image", "completed",
        ][-len(own) :]  # fmt: skip
        assert [e.partial_image_index for e in own[:-1]] == list(range(len(own) - 1))
        assert png_of(own[-1].b64_json).getpixel((0, 0)) == colour_of(seed)
        assert own[-1].usage.total_tokens > TOKENS


def test_an_answer_without_a_picture_is_no_success(client):
    with pytest.raises(UnprocessableEntityError) as error:
        client.images.generate(prompt=f"{PLAIN} air")
    assert error.value.param == "prompt"
    assert f"You said: Generate an image of {PLAIN} air." in str(error.value)


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def post(client: OpenAI, path: str, **body):
    return client._client.post(path, json=body)  # httpx's: OpenAI has no such routes


def test_what_the_model_sees_is_drawn_from_the_features_of_a_picture(client):
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (77, 0, 0)).save(file, "WEBP", lossless=True)
    answer = post(client, "metamorph/seen", image_url=data_url(file.getvalue()))
    content = base64.b64decode(answer.json()["image"].partition(",")[2])
    drawing = drawing_of(content, TOKENS, WIDTH, SIDE * SIDE)
    expected = seen_by(Image.new("RGB", (1, 1), (77, 0, 0)))
    assert (drawing.features - expected).abs().max() < 1e-3


def test_a_picture_of_the_model_is_drawn_again_with_another_seed(client):
    url = data_url(png_bytes(own_picture(9)))
    one, again, other = (
        post(client, "metamorph/redraw", image_url=url, seed=seed, steps=STEPS).json()
        for seed in (1, 1, 2)
    )
    assert one["image"] == again["image"] != other["image"]
    assert other["metamorph"] == {"seed": 2}
    assert post(client, "metamorph/redraw", image_url=one["image"], seed=1).json() == one


def test_a_picture_of_somebody_else_cannot_be_drawn_again(client):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    answer = post(client, "metamorph/redraw", image_url=data_url(file.getvalue()))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "image_url"
