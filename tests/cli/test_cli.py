"""The command line: help that teaches, exit codes, one-sentence errors without a traceback."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError

import metamorph
from metamorph.cli import doctor, generate
from metamorph.cli.command import build_parser, main
from metamorph.config import RunConfig
from metamorph.config.reading import iter_fields
from metamorph.decoder.libraries import DecoderOptions
from metamorph.errors import Stopped
from metamorph.generation.answer import Reply
from metamorph.generation.assistant import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.events import Usage
from metamorph.generation.messages import Drawing


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "metamorph", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def fails(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("metamorph: ")
    return error


@pytest.mark.parametrize("verb", ["quickstart", "train", "generate", "chat", "doctor"])
def test_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and len(text) > 100
    if verb != "doctor":
        assert f"metamorph {verb} " in text  # an example to copy


def test_help_of_train_explains_every_key(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for key, _, _, explanation in iter_fields(RunConfig):
        assert f"--{key}" in text and explanation.split()[0] in text


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"metamorph {metamorph.__version__}\n"


def test_the_module_runs_and_help_is_quick():
    result = run("--help")
    assert result.returncode == 0 and "quickstart" in result.stdout
    probe = "import sys; import metamorph.cli.command; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert shown.stdout.strip() == "False"


@pytest.fixture
def config(tmp_path):
    values = {
        "stage": "align",
        "output": str(tmp_path / "run"),
        "model": {"folder": str(tmp_path / "no-model")},
        "data": {"source": "toy_scenes"},
    }

    def write(**changes):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def test_unknown_keys_name_the_nearest(config, capsys):
    error = fails(capsys, "train", config(trainning={"steps": 5}))
    assert "trainning" in error and "training" in error
    error = fails(capsys, "train", config(), "--training.lerning_rate", "1")
    assert "training.lerning_rate" in error and "training.learning_rate" in error


def test_wrong_values_name_the_key(config, capsys):
    error = fails(capsys, "train", config(), "--training.steps", "many")
    assert "training.steps" in error and "many" in error
    assert "align" in fails(capsys, "train", config(stage="pretend"))


def test_missing_files_are_named(config, capsys, tmp_path):
    assert "nowhere.yaml" in fails(capsys, "train", tmp_path / "nowhere.yaml")
    assert "no-model" in fails(capsys, "train", config())
    error = fails(capsys, "generate", "hello", "--model", tmp_path / "no-model")
    assert "no-model" in error


def test_pictures_of_a_prompt_are_checked_first(capsys, tmp_path):
    assert "gone.png" in fails(capsys, "generate", "hi", "--image", tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png" in fails(capsys, "generate", "hi", "--image", tmp_path / "text.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "ok.png")
    arguments = ("--image", tmp_path / "ok.png", "--model", tmp_path / "no-model")
    assert "no-model" in fails(capsys, "generate", "hi", *arguments)


def test_an_existing_run_folder_is_kept(config, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "exists" in fails(capsys, "train", config())
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_quickstart_replaces_only_its_own_folder(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "holds something else" in fails(capsys, "quickstart", "--output", tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_unknown_options_of_other_verbs(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--verbose"])
    assert stop.value.code == 2 and "--verbose" in capsys.readouterr().err


def test_doctor_prints_versions_and_reasons(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "flash" in text and "interval_attention" in text
    assert main(["doctor", "--json"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens: expected a whole number, at least 1"),
        (["--max-new-tokens", "many"], "got 'many'"),
        (["--max-new-tokens", "1.5"], "got '1.5'"),
        (["--drawing-steps", "0"], "--drawing-steps: expected a whole number, from 1 to 1000"),
        (["--guidance", "-1"], "--guidance: expected a number, at least 0"),
        (["--guidance", "nan"], "got 'nan'"),
        (["--guidance", "inf"], "got 'inf'"),
        (["--temperature", "-0.1"], "--temperature: expected a number, at least 0"),
        (["--temperature", "inf"], "got 'inf'"),
        (["--seed", "-1"], "--seed: expected a whole number, from 0 to 4294967295, got '-1'"),
        (["--seed", "4294967296"], "got '4294967296'"),
    ],
)
def test_options_have_limits(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "hello", *arguments])
    assert stop.value.code == 2 and expected in capsys.readouterr().err
    if arguments[0] == "--seed":
        with pytest.raises(SystemExit) as stop:
            main(["quickstart", *arguments])
        assert stop.value.code == 2 and expected in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["generate", "hi"], ["chat"], ["serve", "--port", "0"]])
def test_a_library_for_the_decoder_is_missed_before_anything_is_read(verb, capsys, tmp_path):
    options = ("--model", tmp_path / "none", "--device", "cpu", "--decoder-attention", "xformers")
    said = fails(capsys, *verb, *options)
    assert "the decoder's attention by xformers cannot be used here (xformers: " in said


@pytest.mark.parametrize(
    "command", ["generate hi", "chat", "serve --port 0", "evaluate --decoder d --vision v"]
)
def test_an_interval_out_of_order_is_refused_before_anything_is_read(command, capsys, tmp_path):
    verb, *options = command.split()
    place = ("--output" if verb == "evaluate" else "--model", tmp_path / "none")
    said = fails(capsys, verb, *options, *place, "--guidance-interval", "0.6", "0.1")
    assert "expected the smaller number first, got (0.6, 0.1)" in said


def test_the_last_values_within_the_limits_are_taken():
    arguments = build_parser().parse_args(
        ["generate", "hi", "--seed", "4294967295", "--guidance", "0", "--drawing-steps", "1"]
        + ["--max-new-tokens", "1", "--temperature", "0"]
    )
    assert (arguments.seed, arguments.guidance, arguments.temperature) == (2**32 - 1, 0, 0)
    assert (arguments.drawing_steps, arguments.max_new_tokens) == (1, 1)


def test_the_folder_for_pictures_is_made_first(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    options = ("--model", tmp_path / "no-model", "--save-to")
    assert "is a file" in fails(capsys, "generate", "hi", *options, tmp_path / "file")
    assert "--save-to" in fails(capsys, "generate", "hi", *options, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"
    assert "no-model" in fails(capsys, "generate", "hi", *options, tmp_path / "a" / "b")
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(capsys, tmp_path, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(generate.tempfile, "TemporaryFile", refused)
    error = fails(capsys, "generate", "hi", "--save-to", tmp_path)
    assert "--save-to" in error and str(tmp_path) in error and "Permission denied" in error


class Answering:
    """Stands in for a chat: its answer holds a picture between two texts."""

    def __init__(self, decoder):
        self.decoder = decoder

    def generate(self, conversations, settings):
        picture = Image.new("RGB", (8, 8)) if self.decoder else None
        parts = ("before", Drawing(torch.zeros(4, 3), picture), "after")
        return [Reply(parts, "stop", Usage())]


@pytest.mark.parametrize("decoder", [None, object()])
def test_text_is_printed_with_and_without_a_decoder(decoder, capsys, tmp_path, monkeypatch):
    asked = {}

    def open_chat(folder, device, **precision):
        asked.update(precision)
        return Answering(decoder)

    monkeypatch.setattr(Assistant, "from_pretrained", open_chat)
    command = ["generate", "hi", "--model", "some/model", "--save-to", str(tmp_path)]
    chosen = DecoderOptions()
    if decoder is not None:
        chosen = DecoderOptions("bf16", "xformers", "apex")
        command += ["--decoder-precision", "bf16", "--decoder-attention", "xformers"]
        command += ["--decoder-group-norm", "apex"]
    code = main([*command, "--device", "cpu", "--precision", "fp8", "--fp8-backend", "native"])
    assert asked == {
        "decoder": None, "preview_decoder": None,
        "decoder_options": chosen, "precision": "fp8", "fp8_backend": "native", "weights": "",
        "options": EngineOptions(slots=1),
        "open_when_needed": True,
    }  # fmt: skip
    shown = capsys.readouterr()
    path = tmp_path / "picture-1.png"
    if decoder is None:
        assert code == 2 and shown.out == "before\nafter\n" and not path.exists()
        assert shown.err.count("\n") == 1 and "some/model has no decoder/" in shown.err
        assert "--decoder FOLDER" in shown.err and "metamorph join some/model" in shown.err
    else:
        assert code == 0 and shown.out == f"before\n[picture: {path}]\nafter\n"
        assert Image.open(path).size == (8, 8)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (OSError(28, "No space left on device", "/a/b"), 1, "/a/b: No space left on device"),
        (SafetensorError("I/O error: no space (os error 28)"), 1, "No space left on device"),
        (PermissionError(13, "Permission denied"), 2, "Permission denied"),
        (OSError("no such thing\nin two lines"), 2, "no such thing in two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("stopped after step 3 of 6"), 130, "stopped after step 3 of 6"),
    ],
)
def test_what_stops_a_verb_is_one_line(error, code, expected, capsys, monkeypatch):
    def raises(arguments):
        raise error

    monkeypatch.setattr(doctor, "run", raises)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"metamorph: {expected}\n"
