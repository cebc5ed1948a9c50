"""`metamorph generate` for one prompt and for a file of them, with a tiny model that draws."""

import json
import os
import signal

import pytest
import torch
from PIL import Image

from metamorph.cli import generate
from metamorph.cli.command import main
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import Message, question
from metamorph.generation.picture_files import drawing_of
from metamorph.generation.settings import AnswerSettings, Sampling
from metamorph.model import assemble
from metamorph.model.siglip import SiglipEncoder
from tests.tiny_run import GRID, tiny_decoder, write_language, write_vision

TOKENS, WIDTH = GRID**2, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder whose likeliest token is that which begins a picture."""
    folder = tmp_path_factory.mktemp("draws")
    model, tokenizer = assemble(
        write_language(folder / "llama"), write_vision(folder / "siglip"), grid=GRID
    )
    with torch.no_grad():  # every state has a large first number, which that token's row asks for
        model.language.model.embed_tokens.weight[:, 0] = 20
        model.language.lm_head.weight[model.config.image_start_id, 0] = 20
    model.save_pretrained(folder / "model", tokenizer)
    tiny_decoder().save_pretrained(folder / "model" / "decoder")
    return folder / "model"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    return tmp_path


def run(model, *arguments) -> int:
    options = ["--model", str(model), "--device", "cpu", "--max-new-tokens", "24"]
    return main(["generate", *map(str, arguments), *options])


def write(here, *lines: dict) -> None:
    (here / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def answers(here) -> dict[str, dict]:
    lines = (here / "out" / "answers.jsonl").read_text().splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


MANY = "--prompts", "prompts.jsonl", "--output", "out"


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["generate", *map(str, arguments), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("metamorph: ")
    return error


def test_one_prompt_gets_pictures_with_their_features(model, here, capsys):
    assert run(model, "<image> again", "--image", "red.png", "--max-images", "2") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["[picture: picture-1.png]", "[picture: picture-2.png]"]
    assert run(model, "Draw", "--max-images", "1", "--system", "Be brief.") == 0
    assert (here / "picture-3.png").exists()  # nothing is overwritten
    data = (here / "picture-1.png").read_bytes()
    assert drawing_of(data, TOKENS, WIDTH, 10_000).picture.size == (64, 64)
    assert run(model, "Talk", "--max-images", "0", "--temperature", "1", "--top-k", "5") == 0
    assert not (here / "picture-4.png").exists()


def test_every_line_gets_the_answer_that_it_would_get_alone(model, here, capsys):
    write(
        here,
        {"id": "draw", "prompt": "Draw it", "max_images": 2},
        {"id": "see", "prompt": "What is it?", "image": "red.png", "max_images": 1, "seed": 5},
        {"id": "talk", "prompt": "Talk", "max_images": 0, "temperature": 1.0, "top_p": 0.8},
    )
    assert run(model, *MANY, "--seed", "3", "--system", "Be brief.") == 0
    assert "holds the answers to 3 of 3 prompts" in capsys.readouterr().out
    found = answers(here)
    assistant = Assistant.from_pretrained(model)
    system, red = Message("system", "Be brief."), Image.open(here / "red.png")
    for name, asked, settings in (
        ("draw", question("Draw it"), AnswerSettings(24, Sampling(seed=3), 2)),
        ("see", question("What is it?", red), AnswerSettings(24, Sampling(seed=5), 1)),
        ("talk", question("Talk"), AnswerSettings(24, Sampling(1.0, top_p=0.8, seed=3), 0)),
    ):
        [reply] = assistant.generate([[system, asked]], settings)
        assert found[name]["text"] == reply.text
        assert found[name]["usage"]["answer_tokens"] == reply.usage.answer_tokens
        urls = [p["image_url"]["url"] for p in found[name]["parts"] if p["type"] == "image_url"]
        assert len(urls) == len(reply.features) == settings.max_images
        for number, (url, features) in enumerate(zip(urls, reply.features, strict=True), 1):
            assert url == f"{name}-{number}.png"
            drawing = drawing_of((here / "out" / url).read_bytes(), TOKENS, WIDTH, 10_000)
            torch.testing.assert_close(drawing.features, features, atol=2e-3, rtol=0)
    assert (found["see"]["seed"], found["talk"]["seed"]) == (5, 3)
    assert found["talk"]["settings"]["top_p"] == 0.8


def test_own_pictures_are_read_as_predicted_or_again_from_their_pixels(model, here, monkeypatch):
    assert run(model, "Draw", "--max-images", "1") == 0
    own = [{"type": "image_url", "image_url": {"url": "picture-1.png"}}]
    asked = {"role": "user", "content": "Draw"}
    line = {"messages": [asked, {"role": "assistant", "content": own}, asked], "max_images": 0}
    write(here, line)
    seen, encode = [], SiglipEncoder.preprocess

    def remember(self, images):
        seen.extend(images)
        return encode(self, images)

    monkeypatch.setattr(SiglipEncoder, "preprocess", remember)
    assert run(model, *MANY) == 0 and not seen
    assert run(model, *MANY, "--reencode") == 2  # another way to answer
    assert run(model, *MANY[:3], "again", "--reencode") == 0 and len(seen) == 1


def test_a_run_that_was_stopped_goes_on(model, here, capsys, monkeypatch):
    write(here, *({"prompt": f"Draw {number}", "max_images": 1} for number in range(3)))
    advance = Assistant.advance

    def interrupted(self):
        if (here / "out" / "answers.jsonl").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Assistant, "advance", interrupted)
        stopped = run(model, *MANY)
    if stopped == 130:  # unless all came in the same round
        assert "prompts are answered; the same command goes on" in capsys.readouterr().err
    before = (here / "out" / "answers.jsonl").read_text()
    assert run(model, *MANY) == 0
    assert (here / "out" / "answers.jsonl").read_text().startswith(before)
    assert len(answers(here)) == 3 and len(list((here / "out").glob("*.png"))) == 3
    monkeypatch.setattr(generate, "open_assistant", None)  # nothing is loaded for nothing
    assert run(model, *MANY) == 0


def test_prompts_that_fail_are_counted(model, here, capsys):
    write(here, {"id": "long", "prompt": "x", "max_new_tokens": 10**6}, {"prompt": "y"})
    assert run(model, *MANY, "--max-images", "0") == 1
    shown = capsys.readouterr()
    assert "holds the answers to 1 of 2 prompts" in shown.out
    assert "1 of 2 prompts failed, and are tried again by the same command (first: long: " in (
        shown.err
    )
    assert "1000000" in answers(here)["long"]["error"]


def test_all_lines_are_checked_before_the_model_is_loaded(here, capsys):
    write(here, {"prompt": "x"}, {"prompt": "x", "tempratur": 1})
    error = refused(capsys, *MANY, "--model", "nowhere")
    assert "prompts.jsonl:2: unknown key 'tempratur'; the nearest is 'temperature'" in error
    assert not (here / "out").exists()
    write(here, {"prompt": "x"})
    assert "nowhere does not exist" in refused(capsys, *MANY, "--model", "nowhere")
    assert not (here / "out").exists()


def test_a_folder_of_other_settings_is_refused(model, here, capsys):
    write(here, {"prompt": "x", "max_images": 0})
    assert run(model, *MANY) == 0
    before = (here / "out" / "answers.jsonl").read_text()
    error = refused(capsys, *MANY, "--model", model)
    assert "out was made with max_new_tokens 24, and it is 256 now; give a new folder" in error
    write(here, {"prompt": "y", "max_images": 0})
    assert run(model, *MANY) == 2
    assert "out was made with other prompts than these" in capsys.readouterr().err
    assert (here / "out" / "answers.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "expected PROMPT or --prompts FILE, got neither"),
        (["x", "--prompts", "a"], "expected PROMPT or --prompts FILE, got both"),
        (["--prompts", "a"], "--prompts needs --output FOLDER"),
        (["x", "--output", "a"], "--output goes with --prompts only"),
        (["x", "--reencode"], "--reencode goes with --prompts only"),
        (["x", "--image-root", "a"], "--image-root goes with --prompts only"),
        (["x", "--slots", "16"], "--slots goes with --prompts only"),
        (["x", "--top-k", "9"], "--top-k: temperature 0 takes the likeliest token anyway"),
        (["x", "--min-p", "0.1", "--seed", "1"], "--min-p: temperature 0 takes the likeliest"),
        (["--prompts", "a", "--output", "b", "--image", "c"], "--image goes with PROMPT only"),
        (["--prompts", "a", "--output", "b", "--save-to", "c"], "--save-to goes with PROMPT only"),
        (["--prompts", "none.jsonl", "--output", "b"], "none.jsonl: no such file, expected a file"),
        (["<image>"], "1 <image> placeholders but 0 images"),
        (["x", "--stop", ""], "stop: expected strings that are not empty"),
    ],
)
def test_options_that_do_not_go_together(here, arguments, problem, capsys):
    assert problem in refused(capsys, *arguments)
