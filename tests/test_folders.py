"""What is said of a folder that is not there: nothing is downloaded in its place."""

import pytest

from metamorph.cli.command import main
from metamorph.config import RunConfig
from metamorph.errors import UserError
from metamorph.folders import check_folder
from metamorph.monitor.sample_sheet import SampleSheet

NAME = "HuggingFaceTB/SmolLM2-135M"
DOWNLOAD = f"hf download {NAME} --local-dir models/SmolLM2-135M"


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    """The working directory, where no organisation's folder is."""
    monkeypatch.chdir(tmp_path)


def refused(folder, key="") -> str:
    with pytest.raises(UserError) as caught:
        check_folder(folder, key)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        NAME,
        f"{NAME}/",
        f"https://huggingface.co/{NAME}",
        f"https://huggingface.co/{NAME}/tree/main",
        f"hf://{NAME}",
    ],
)
def test_a_name_of_the_hub_gets_the_command_that_downloads_it(name):
    message = refused(name, "model.language")
    assert message.startswith(f"model.language: {name} is no folder here")
    assert f"`{DOWNLOAD}`" in message


def test_a_path_is_not_taken_for_a_name(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loose").symlink_to(tmp_path / "gone")
    for path in ("runs/mine", "a/b/c", str(tmp_path / "a" / "b"), "../a", "nowhere", "./a"):
        assert refused(path) == f"{path} does not exist, expected a folder"
    assert refused("file", "decoder.base") == "decoder.base: file is a file, expected a folder"
    assert refused("loose") == "loose is a link to nothing, expected a folder"
    assert check_folder("runs") == check_folder(tmp_path / "runs").relative_to(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        f"generate hi --model {NAME}",
        f"export {NAME} out",
        f"import {NAME} out --vision .",
        f"train configs/toy/align.yaml --model.folder {NAME}",
        f"train configs/toy/align.yaml --dry-run --model.folder {NAME}",
        f"train configs/toy/language.yaml --model.language {NAME} --model.vision .",
        f"train configs/toy/language.yaml --model.language . --model.vision {NAME}",
        f"train configs/toy/decoder.yaml --model.vision {NAME} --decoder.base .",
        f"train configs/toy/decoder.yaml --model.vision . --decoder.base {NAME}",
    ],
)
def test_every_verb_and_key_says_so(command, capsys, tmp_path):
    verb, *options = command.split()
    key = next((options[i - 1][2:] + ": " for i, word in enumerate(options) if word == NAME), "")
    output = ["--output", "out"] if verb == "train" else []
    assert main([verb, *options, *output]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"`{DOWNLOAD}`" in error
    assert error.startswith(f"metamorph: {key if verb == 'train' else ''}{NAME} is no folder here")
    assert list(tmp_path.iterdir()) == []


def test_the_decoder_of_the_monitor_says_so(tmp_path):
    config = RunConfig("instruct", "out")
    config.monitor.decoder = NAME
    with pytest.raises(UserError, match=f"^monitor.decoder: {NAME} is no folder here"):
        SampleSheet(config, source=None, model=None, tokenizer=None)
