"""`metamorph serve`: what it refuses before a model is read, and a whole life of it."""

import json
import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

from metamorph import libraries
from metamorph.cli import serve
from metamorph.cli.command import main
from metamorph.decoder.one_pass import OnePassDecoder
from metamorph.decoder.vit_decoder import vit_decoder
from metamorph.generation.engine import DEFAULT_OPTIONS
from tests.tiny_run import tiny_decoder, tiny_one_pass

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("METAMORPH_TOKEN", raising=False)


@pytest.fixture
def unread(monkeypatch):
    """No model is read."""
    monkeypatch.setattr(serve, "open_assistant", lambda *given: pytest.fail("a model was read"))


@pytest.mark.parametrize("package", serve.PACKAGES)
def test_without_the_extra_it_says_how_to_install_it(package, unread, monkeypatch, capsys):
    monkeypatch.setitem(libraries.PROBES, package, lambda device_type: "not installed")
    assert main(["serve"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert package in line and "pip install 'metamorph-vpit[serve]'" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--host", "0.0.0.0"], "--no-token"),
        (["--host", "0.0.0.0", "--token-file", "nothing"], "--token-file nothing"),
        (["--allow-host", "https://example.com"], "--allow-host"),
        (["--image-prompt", "an image"], "image prompt"),
        (["--host", "nowhere.invalid", "--no-token"], "nowhere.invalid"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_read(options, named, unread, capsys):
    assert main(["serve", "--port", "0", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_port_that_is_taken(unread, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("decoder", "options", "said"),
    [
        (tiny_one_pass, ["--drawing-steps", "20"], "takes no steps, got 20"),
        (tiny_one_pass, ["--sampler", "ddim"], "takes no sampler, got 'ddim'"),
        (tiny_one_pass, ["--guidance", "2"], "takes no guidance, got 2.0"),
        (tiny_one_pass, ["--guidance-rescale", "0.5"], "takes no guidance rescale, got 0.5"),
        (tiny_one_pass, ["--guidance-interval", "0", "0.5"], "takes no guidance interval"),
        (
            tiny_decoder,
            ["--drawing-steps", "1000"],
            "drawing.num_inference_steps: 1000 steps of this sa",
        ),
        (lambda: None, ["--sampler", "ddim"], "the model has no decoder"),
    ],
)
def test_it_does_not_begin_with_what_its_decoder_cannot_draw_by(
    decoder, options, said, monkeypatch, capsys
):
    assistant = SimpleNamespace(model=None, decoder=decoder())
    monkeypatch.setattr(serve, "open_assistant", lambda *given, **named: assistant)
    assert main(["serve", "--port", "0", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_slots_are_the_engines():
    assert serve.SLOTS == DEFAULT_OPTIONS.slots


@pytest.mark.parametrize("option", ["--queue=-1", "--max-tokens=0", "--timeout=0", "--port=70000"])
def test_limits_are_checked(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", option])
    assert stop.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_it_answers_until_a_signal_comes(page_folder, monkeypatch, capsys, tmp_path):
    """In this thread, as its signals do; a client in another one asks, and ends it. A one-pass
    decoder of another size previews its pictures."""
    monkeypatch.chdir(page_folder)
    vit = vit_decoder(24, width=16, layers=1, heads=2, picture_size=32, patch_size=4)
    OnePassDecoder(vit, tokens_per_image=64).save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = []

    def ask() -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                until_ready(client)
                answers.append(client.get("/"))
                body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
                answers.append(client.post("/v1/chat/completions", json=body))
                answers.append(client.get("/v1/models"))
                body = {"prompt": "a circle", "stream": True, "partial_images": 2}
                answers.append(client.post("/v1/images/generations", json=body))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask)
    client.start()
    options = ["--port", str(port), "--slots", "2", "--context", "500", "--name", "tiny"]
    assert main(["serve", *options, "--preview-decoder", str(tmp_path)]) == 0
    client.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    page, chat, models, pictures = answers
    assert page.headers["content-type"].startswith("text/html")
    assert chat.json()["usage"]["completion_tokens"] <= 4
    assert models.json()["data"][0]["id"] == "tiny"
    lines = [line for line in pictures.text.splitlines() if line.startswith("data: ")]
    partial, completed = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert (partial["type"], partial["size"]) == ("image_generation.partial_image", "32x32")
    assert (completed["type"], completed["size"]) == ("image_generation.completed", "64x64")
    assert capsys.readouterr().out == f"serving on http://127.0.0.1:{port}\n"


def until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            client.get("/healthz").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.02)
    raise AssertionError("the server did not begin")
