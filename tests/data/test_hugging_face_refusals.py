"""What is refused of data sets of Hugging Face before their library is asked, or without it."""

import json
from pathlib import Path

import pytest

from metamorph.config import DataConfig
from metamorph.data.opening import open_source
from metamorph.errors import UserError
from tests.tiny_run import tiny_config


def fails(path: object, **keys) -> str:
    with pytest.raises(UserError) as refusal:
        open_source(DataConfig("hf", "captions", str(path), **keys), 0)
    return str(refusal.value)


def write_split(folder: Path, file: object = "data.arrow", split: str | None = None) -> Path:
    """What `save_to_disk` says of a split, without its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"_data_files": [{"filename": file}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def write_splits(folder: Path, *splits: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return folder


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.parquet", "; source: parquet reads such a file"),
        ("a.tar", "; source: webdataset reads such a file"),
        ("a.jsonl", "; source: jsonl reads such a file"),
        ("a.csv", ""),
    ],
)
def test_a_file_is_for_another_source(tmp_path, name, hint):
    (tmp_path / name).touch()
    assert fails(tmp_path / name).endswith(
        f"{name} is a file, and source hf takes a name on the Hub or a folder{hint}"
    )


@pytest.mark.parametrize("path", ["/gone/x", "./../gone/x", "../gone", "a/b/c", "a/.."])
def test_what_cannot_be_a_name_on_the_hub_is_missing_here(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert fails(path) == (
        f"data.path: {Path(path)} does not exist, expected a folder or a name on the Hub (ORG/NAME)"
    )


@pytest.mark.parametrize(
    ("split", "keys", "message"),
    [
        (None, {"subset": "de"}, "data.subset: {} is a saved data set, which has none"),
        (None, {"revision": "main"}, "data.revision: {} is here, and has none"),
        (None, {"split": "test"}, "data.split: {} is one split without a name, and not 'test'"),
        ("test", {"split": "train"}, "data.split: {} is one split, 'test', and not 'train'"),
    ],
)
def test_keys_that_a_saved_data_set_does_not_have(tmp_path, split, keys, message):
    assert fails(write_split(tmp_path, split=split), **keys).startswith(message.format(tmp_path))


def test_a_split_that_is_not_there(tmp_path):
    write_splits(tmp_path, "train", "test")
    assert "train, test, and no 'other'" in fails(tmp_path, split="other")


@pytest.mark.parametrize(
    "name", ["../secret.arrow", "/etc/hostname", "a/b", "..", ".", "", 7, None]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    """The files that a data set lists are mapped into memory: none may be any file of this
    machine."""
    expected = f"names {name!r}, expected names of what lies beside it"
    assert expected in fails(write_split(tmp_path / "one", name))
    assert expected in fails(write_splits(tmp_path / "listed", name))
    within = write_splits(tmp_path / "within", "train")
    write_split(within / "train", name)
    assert expected in fails(within)


@pytest.mark.parametrize("text", ["[]", "{", "", '{"_split": 1, "_split": 2}'])
def test_a_state_that_is_none(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    error = fails(tmp_path)
    assert error.startswith(f"data.path: {tmp_path / 'state.json'} cannot be read: ")


def test_a_split_whose_folder_is_missing(tmp_path):
    write_splits(tmp_path, "train")
    assert "train/state.json cannot be read: No such file" in fails(tmp_path)


@pytest.mark.parametrize("key", ["subset", "split", "revision"])
def test_keys_of_the_hub_are_refused_elsewhere(tmp_path, key):
    data = tiny_config(tmp_path, "instruct").data
    setattr(data, key, "test")
    with pytest.raises(UserError, match=f"data.{key}: source toy_scenes does not use it"):
        open_source(data, 0)


def test_without_the_library_the_run_is_refused(tmp_path, monkeypatch):
    absent = {"datasets": lambda device: "not installed"}
    monkeypatch.setattr("metamorph.libraries.PROBES", absent)
    assert "data.source: hf cannot be used here (datasets: not installed)" in fails(tmp_path)
