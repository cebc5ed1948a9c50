"""Data sets of Hugging Face: rows by index, pictures by our decoder, nothing run or guessed."""

import pickle
from pathlib import Path

import pytest
from data_files import image_bytes, turns

from metamorph.config import DataConfig
from metamorph.data.documents import Documents
from metamorph.data.lanes import Lanes
from metamorph.data.opening import open_source, open_validation
from metamorph.errors import SampleError, UserError
from metamorph.init.found_data import find_data

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")


def pairs(count: int = 12, colour: str = "red"):
    """Captioned pictures, as they lie on the Hub."""
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    picture = {"bytes": image_bytes(colour), "path": None}
    rows = [{"image": picture, "text": f"circle {number}"} for number in range(count)]
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def saved(tmp_path) -> Path:
    pairs().save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def config(path: object, **keys) -> DataConfig:
    return DataConfig("hf", "captions", str(path), fields={"caption": "text"}, **keys)


def captions(source, count: int) -> list[str]:
    return [source.sample(index).turns[0].text for index in range(count)]


def fails(path: object, **keys) -> str:
    with pytest.raises(UserError) as refusal:
        open_source(config(path, **keys), 0)
    return str(refusal.value)


def test_rows_become_samples_in_an_order_that_the_seed_chooses(saved):
    source = open_source(config(saved, shuffle=False), 0)
    assert captions(source, 2) == [f"Generate an image of circle {n}." for n in (0, 1)]
    assert source.sample(0).images[0].open().getpixel((0, 0)) == (255, 0, 0)
    assert source.sample(3).where == f"{saved} row 3"
    shuffled = captions(open_source(config(saved), 5), 24)
    assert shuffled == captions(open_source(config(saved), 5), 24)
    assert sorted(shuffled[:12]) == sorted(shuffled[12:]) and shuffled[:12] != shuffled[12:]


def test_pictures_are_decoded_by_us_alone_and_within_limits(saved, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("datasets decoded a picture")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    sample = open_source(config(saved, max_pixels=10), 0).sample(0)
    with pytest.raises(SampleError, match="20 x 10 pixels, the cap is 10"):
        sample.images[0].open()


def test_a_split_is_one_that_is_there(tmp_path):
    both = datasets.DatasetDict({"train": pairs(), "test": pairs(3, "blue")})
    both.save_to_disk(tmp_path / "both")
    assert len(open_source(config(tmp_path / "both"), 0)) == 12
    assert len(open_source(config(tmp_path / "both", split="test"), 0)) == 3
    assert "data.split: " in fails(tmp_path / "both", split="other")
    assert "train, test, and no 'other'" in fails(tmp_path / "both", split="other")


def named(split: str, count: int):
    """A split that knows its name, as `load_dataset` gives it."""
    rows = pairs(count)
    return datasets.Dataset(rows.data, rows.info, datasets.NamedSplit(split))


def test_the_folder_of_one_split_is_that_split(tmp_path, saved):
    splits = datasets.DatasetDict({"train": named("train", 12), "test": named("test", 3)})
    splits.save_to_disk(tmp_path / "both")
    beside = config(tmp_path / "both/train", validation=str(tmp_path / "both/test"))
    assert len(open_source(beside, 0)) == 12
    assert len(open_validation(beside, 0)) == 3
    assert len(open_source(config(tmp_path / "both/test", split="test"), 0)) == 3
    assert len(open_source(config(saved, split="train"), 0)) == 12  # it has no name of its own
    error = fails(tmp_path / "both/test", split="train")
    assert "data.split: " in error and "is one split, 'test', and not 'train'" in error


def test_what_is_measured_may_be_a_mixture(tmp_path, saved):
    pairs(3).save_to_disk(tmp_path / "other")
    part = "{source: hf, family: captions, path: other, fields: {caption: text}}"
    (tmp_path / "val.yaml").write_text(f"other: {part}\n")
    data = config(saved, split="train", validation=str(tmp_path / "val.yaml"))
    assert len(open_source(data, 0)) == 12
    assert sorted(captions(open_validation(data, 0), 3)) == [
        f"Generate an image of circle {number}." for number in range(3)
    ]


def test_a_folder_of_parquet_files_is_a_data_set_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    pairs().to_parquet(tmp_path / "files" / "a.parquet")
    assert len(open_source(config(tmp_path / "files"), 0)) == 12
    assert len(open_source(config(tmp_path / "files", split="train[:25%]"), 0)) == 3


@pytest.mark.parametrize("old", [True, False], ids=["lists in an object", "objects in a list"])
def test_conversations_as_either_version_stores_them(tmp_path, old):
    said = turns("<image>What is it?", "A circle.")
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    kind = datasets.Sequence(turn) if old else datasets.List(turn)
    written = {key: [part[key] for part in said] for key in turn} if old else said
    features = datasets.Features({"images": datasets.List(datasets.Image()), "messages": kind})
    row = {"images": [{"bytes": image_bytes(), "path": "a.png"}], "messages": written}
    datasets.Dataset.from_list([row], features=features).save_to_disk(tmp_path / "saved")
    found = find_data(str(tmp_path / "saved"), True).config
    assert (found.source, found.family) == ("hf", "conversations")
    sample = open_source(DataConfig("hf", path=str(tmp_path / "saved")), 0).sample(0)
    assert [turn.text for turn in sample.turns] == ["<image>What is it?", "A circle."]
    assert sample.images[0].open().size == (20, 10)


def test_init_tells_a_saved_data_set_and_its_fields(saved):
    found = find_data(str(saved), True).config
    assert (found.source, found.family, found.fields) == ("hf", "captions", {"caption": "text"})


def test_a_picture_without_bytes_is_one_bad_sample(tmp_path):
    """A path within the rows could name any file of this machine."""
    row = {"image": {"bytes": None, "path": "/etc/hostname"}, "text": "a circle"}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
    with pytest.raises(SampleError, match="expected bytes"):
        open_source(config(tmp_path / "saved"), 0).sample(0)


def test_what_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    error = fails("me/nowhere")
    assert error.startswith("data.path: me/nowhere on the Hub") and "\n" not in error
    (tmp_path / "empty").mkdir()
    assert "cannot be opened as a data set" in fails(tmp_path / "empty")
    (tmp_path / "script").mkdir()
    (tmp_path / "script/script.py").write_text("raise SystemExit('it ran')")
    assert "cannot be opened as a data set" in fails(tmp_path / "script")


def test_a_source_goes_to_another_process_as_it_is(saved):
    source = open_source(config(saved), 3)
    assert captions(pickle.loads(pickle.dumps(source)), 12) == captions(source, 12)


def lanes_of(folder: str, tokenizer, rank: int, world_size: int, state: dict | None = None):
    from metamorph.data.conversation import ChatEncoder

    documents = Documents(open_source(config(folder), 7), ChatEncoder(tokenizer, 4), 64)
    lanes = Lanes(documents, 0, 4, rank, world_size)
    if state:
        lanes.load_state_dict(state)
    return lanes


def test_two_processes_go_on_with_the_rows_of_one(saved, tokenizer):
    """Bit for bit, wherever the first one stopped."""
    alone = lanes_of(saved, tokenizer, 0, 1)
    for _ in range(3):
        alone.next_rows()
    state = alone.state_dict()
    expected = [row.token_ids.tolist() for row in alone.next_rows()]
    found = {}
    for rank in range(2):
        rows = lanes_of(saved, tokenizer, rank, 2, state).next_rows()
        found |= {rank + 2 * number: row.token_ids.tolist() for number, row in enumerate(rows)}
    assert [found[lane] for lane in range(4)] == expected
