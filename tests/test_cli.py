"""The command line: help that teaches, exit codes, one-sentence errors without a traceback."""

import subprocess
import sys

import pytest
import yaml
from PIL import Image

from metamorph.cli import main
from metamorph.config import RunConfig, iter_fields


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "metamorph", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def fails(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("metamorph: ")
    return error


@pytest.mark.parametrize("verb", ["quickstart", "train", "generate", "doctor"])
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


def test_the_module_runs_and_help_is_quick():
    result = run("--help")
    assert result.returncode == 0 and "quickstart" in result.stdout
    probe = "import sys; import metamorph.cli; print('torch' in sys.modules)"
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
