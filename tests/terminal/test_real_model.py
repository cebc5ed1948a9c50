"""The chat with a real assistant, of a tiny random model: what is scripted elsewhere fits it."""

import io
import json
import sys

import pytest
import torch
from PIL import Image

from metamorph.cli.command import main
from metamorph.generation.messages import ASSISTANT, USER, Drawing, Message
from metamorph.model import assemble
from metamorph.terminal.saved import save
from tests.tiny_run import GRID, tiny_decoder, write_language, write_vision

WIDTH = 24  # of the features of the tiny encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    parts = write_language(folder / "llama"), write_vision(folder / "siglip")
    model, tokenizer = assemble(*parts, grid=GRID)
    model.save_pretrained(folder / "model", tokenizer)
    tiny_decoder().save_pretrained(folder / "model" / "decoder")
    return folder / "model"


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, options=()) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        usual = ["--model", str(model), "--device", "cpu", "--max-new-tokens", "6"]
        return main(["chat", *usual, *options]), *capsys.readouterr()

    return run


def test_a_conversation_and_its_continuation(run, tmp_path):
    Image.new("RGB", (40, 30), "red").save("red.png")
    code, whole, _ = run("/image red.png", "What is it?", "/save talk.json", "And where?")
    assert code == 0
    code, later, _ = run("/load talk.json", "And where?", "/save longer.json")
    assert code == 0 and whole.endswith(later)  # which goes on as if it had never stopped
    saved = json.loads((tmp_path / "longer.json").read_text())
    roles = [message["role"] for message in saved["messages"]]
    assert roles == ["user", "assistant"] * 2 and len(saved["images"]) >= 1


def test_its_own_pictures_are_read_as_features(run, tmp_path):
    features = torch.nn.functional.normalize(torch.randn(GRID**2, WIDTH), dim=-1)
    drawn = Drawing(features, Image.new("RGB", (64, 64), "blue"))
    save(tmp_path / "talk.json", (Message(USER, "Draw."), Message(ASSISTANT, ("So:", drawn))))
    code, out, err = run("/load talk.json", "What is it?")
    assert code == 0 and "loaded 1 answer" in err


def test_a_conversation_that_does_not_fit_says_how_to_go_on(run):
    code, _, err = run("Hi.", "/set max_new_tokens 1000000", "More?")
    assert code == 2 and "metamorph: line 3: conversation: its " in err
    assert "exceed the context of" in err and "/undo takes back the last question" in err


def test_the_context_can_be_bounded(run):
    code, _, err = run("Hi.", options=["--context", "7"])
    assert code == 2 and "exceed the context of 7 tokens" in err
    assert run(options=["--context", "9000"])[0] == 2  # the model has positions for 8192
