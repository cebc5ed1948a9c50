"""What is said of a folder that is not there: nothing is downloaded in its place."""

import os
from pathlib import Path

import pytest

from metamorph.cli.command import main
from metamorph.config import DataConfig, RunConfig
from metamorph.data.opening import open_source
from metamorph.errors import UserError
from metamorph.folders import check_data_set, check_file, check_folder, check_result
from metamorph.model.weights import read_json
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
    # `models/x` is where the command puts what it fetches.
    for path in (
        "runs/mine",
        "models/x",
        "a/b/c",
        str(tmp_path / "a" / "b"),
        "../a",
        "nowhere",
        "./a",
    ):
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


@pytest.mark.parametrize("source", ["jsonl", "webdataset", "parquet", "pictures"])
def test_a_data_set_of_the_hub_gets_the_command_that_downloads_it(source):
    command = "`hf download org/Set-1.5 --repo-type dataset --local-dir data/Set-1.5`"
    with pytest.raises(UserError, match=f"^data.path: org/Set-1.5 is not here.*{command}"):
        open_source(DataConfig(source=source, path="org/Set-1.5"), 0, words=False)
    Path("a.jsonl").write_text("{}")
    with pytest.raises(UserError, match="^data.image_root: org/Set-1.5 is not here"):
        open_source(DataConfig(path="a.jsonl", image_root="org/Set-1.5"), 0)


@pytest.mark.parametrize("path", ["data/mine", "org/a.jsonl", "a/b/c", "nowhere"])
def test_other_data_that_are_missing_are_files_or_folders(path):
    check_data_set(Path(path), "data.path")


@pytest.mark.parametrize("kind", ["model", "decoder"])
def test_the_folder_of_a_run_names_the_one_of_its_result(kind):
    Path("run", kind).mkdir(parents=True)
    path = Path("run", "config.json")
    check_result(path, kind)  # neither is there: another message
    Path("run", kind, "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"^run is the folder of a run, whose {kind} is run/{kind}"):
        check_result(path, kind)
    path.write_text("{}")
    check_result(path, kind)


@pytest.mark.parametrize(
    "verb", ["generate hi --model run", "export run out", "join run --decoder x --output out"]
)
def test_every_verb_names_the_model_of_a_run(verb, capsys):
    for folder in ("run/model", "x"):
        Path(folder).mkdir(parents=True)
    Path("run/model/config.json").write_text("{}")
    assert main(verb.split()) == 2
    assert "run is the folder of a run, whose model is run/model" in capsys.readouterr().err


def test_the_decoder_of_the_monitor_says_so(tmp_path):
    config = RunConfig("instruct", "out")
    config.monitor.decoder = NAME
    with pytest.raises(UserError, match=f"^monitor.decoder: {NAME} is no folder here"):
        SampleSheet(config, source=None, model=None, tokenizer=None)


def put_nothing(path: Path) -> None: ...


def put_link_nowhere(path: Path) -> None:
    path.symlink_to("gone")


def put_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("put", "problem"),
    [
        (put_nothing, "model/a.json: no such file, expected settings"),
        (Path.mkdir, "model/a.json is a folder, expected settings"),
        (put_link_nowhere, "model/a.json is a link that leads nowhere, expected settings"),
        (put_circle, "model/a.json is a link that leads nowhere, expected settings"),
        (os.mkfifo, "model/a.json is a device, expected settings"),
    ],
)
def test_what_is_there_in_place_of_a_file_is_said(put, problem):
    path = Path("model/a.json")
    path.parent.mkdir()
    put(path)
    with pytest.raises(UserError) as caught:
        check_file(path, "settings")
    assert str(caught.value) == problem


def test_a_file_that_may_not_be_reached_or_read_is_named(monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    Path("config.json").write_text("{}")
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UserError, match="config.json: cannot be read: Permission denied"):
        read_json(Path("config.json"))
    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(UserError, match="config.json cannot be read: Permission denied"):
        check_file(Path("config.json"), "settings")


def test_a_file_in_a_folder_that_is_missing_is_a_missing_folder():
    with pytest.raises(UserError, match="model does not exist, expected a folder"):
        check_file(Path("model/a.json"), "settings")
