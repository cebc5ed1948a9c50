"""A key that no source of the data uses is refused; every other one is read."""

from dataclasses import replace
from pathlib import Path

import pytest
from data_files import image_bytes, write_lines, write_tar

from metamorph.config import DataConfig
from metamorph.data.opening import open_source
from metamorph.data.uses import check_data
from metamorph.errors import UserError
from tests.keys_read import keys_read, other_values

RECORDS = {"family", "fields"}
GENERATED = {"kinds", "samples"}
HUB = {"subset", "split", "revision"}
VIDEOS = {"frames_per_second", "max_frames"}  # of two families
FILES = {"path", "max_pixels", "truncated", "shuffle"}
COPIES = {"cache", "cache_gigabytes"}
BY_SOURCE = RECORDS | GENERATED | HUB | VIDEOS | FILES | COPIES | {"image_root", "follow_links"}
USED = {
    "toy_scenes": GENERATED,
    "english_scenes": GENERATED,
    "jsonl": RECORDS | FILES | {"image_root", "follow_links"},
    "webdataset": RECORDS | FILES | {"follow_links"},
    "parquet": RECORDS | FILES | {"follow_links"},
    "hf": RECORDS | HUB | FILES,
    "pictures": FILES | {"follow_links"},
    "mixture": {"path", "shuffle", "max_pixels", "truncated", "follow_links"},
}
OTHERS = {name.removeprefix("data."): value for name, value in other_values().items()}


@pytest.fixture
def data(tmp_path):
    """A `DataConfig` of each kind of source, whose files are there where the test opens them."""
    write_lines(tmp_path / "a.jsonl", {"image": "a.png", "caption": "a cat"})
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(), "0.txt": b"a cat"})
    (tmp_path / "a.png").write_bytes(image_bytes())
    (tmp_path / "mix.yaml").write_text("a: {path: a.jsonl, family: captions}\n")
    paths = {"jsonl": "a.jsonl", "webdataset": "a.tar", "pictures": "", "mixture": "mix.yaml"}
    found = {}
    for source in USED:
        config = DataConfig(source)
        if "scenes" not in source:
            config.path = str(tmp_path / paths.get(source, source))
        found[source] = config
    return found


def refused(config: DataConfig) -> set[str]:
    found = set()
    for key in BY_SOURCE - {"path"} if config.path else BY_SOURCE:
        try:
            check_data(replace(config, **{key: OTHERS[key]}))
        except UserError as error:
            assert str(error).startswith(f"data.{key}: ") and "leave it out" in str(error)
            found.add(key)
    return found


@pytest.mark.parametrize("source", USED)
def test_a_key_that_a_source_does_not_use_is_refused(data, source):
    check_data(data[source])
    assert refused(data[source]) == BY_SOURCE - USED[source]


@pytest.mark.parametrize("source", ["toy_scenes", "english_scenes", "jsonl", "webdataset"])
def test_what_is_not_refused_is_read(data, source, monkeypatch):
    family = {} if "scenes" in source else {"family": "captions"}
    with keys_read(monkeypatch) as read:
        open_source(replace(data[source], **family), 0).sample(0)
    assert {f"data.{key}" for key in USED[source]} <= read


def test_pictures_read_what_is_not_refused(data, monkeypatch):
    with keys_read(monkeypatch) as read:
        open_source(data["pictures"], 0, words=False).sample(0)
    assert {f"data.{key}" for key in USED["pictures"]} <= read


@pytest.mark.parametrize("family", ["video_questions", "video_frames"])
def test_keys_of_videos(data, family):
    films = replace(data["jsonl"], family=family)
    assert refused(films) == BY_SOURCE - USED["jsonl"] - VIDEOS
    with pytest.raises(UserError, match=r"^data.max_frames: family conversations does not use it "):
        check_data(replace(data["jsonl"], max_frames=2))


def test_the_keys_of_a_part_are_its_own(data, tmp_path):
    mixture = data["mixture"]
    message = r"^data.image_root: source mixture .* \(only jsonl\); .* or give it to its parts"
    with pytest.raises(UserError, match=message):
        open_source(replace(mixture, image_root=str(tmp_path)), 0)
    Path(mixture.path).write_text("scenes: {source: toy_scenes, image_root: images}\n")
    for refuses in (check_data, lambda config: open_source(config, 0)):
        with pytest.raises(UserError, match="mix.yaml: part 'scenes': data.image_root: source toy"):
            refuses(mixture)


def test_a_key_of_all_parts_needs_one_that_uses_it(data):
    mixture = replace(data["mixture"], follow_links=True)
    check_data(mixture)
    Path(mixture.path).write_text("scenes: {source: toy_scenes}\n")
    message = r"^data.follow_links: no part of .*mix.yaml uses it \(only jsonl, webdataset, parquet"
    with pytest.raises(UserError, match=message):
        check_data(mixture)
    Path(mixture.path).unlink()  # of a plan: nobody knows its parts
    check_data(mixture)


def test_the_samples_of_validation_are_of_the_data_too(data):
    scenes = replace(data["toy_scenes"], max_pixels=100)
    with pytest.raises(UserError, match="^data.max_pixels: source toy_scenes does not use it"):
        check_data(scenes)
    check_data(replace(scenes, validation=data["mixture"].path))


def test_a_program_gives_the_samples(data):
    check_data(DataConfig(row_length=256, max_pixels=DataConfig.max_pixels), own_source=True)
    with pytest.raises(UserError, match="^data.path: a program gives the samples, and does not"):
        check_data(data["jsonl"], own_source=True)
    validated = replace(data["jsonl"], validation="b.jsonl")
    check_data(validated, own_source=True)
    with pytest.raises(UserError, match="^data.kinds: a program gives the samples, and does not"):
        check_data(replace(validated, kinds={"draw": 1.0}), own_source=True)
