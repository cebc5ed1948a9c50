"""Which files a record may name: within the user's folder, through links where they are allowed."""

import os
from pathlib import Path

import pytest
from data_files import image_bytes, turns, write_lines, write_tar

from metamorph.config import DataConfig
from metamorph.data.formats.records import Folder, files_of
from metamorph.data.images import opened
from metamorph.data.links import Root
from metamorph.data.opening import open_source
from metamorph.errors import SampleError, UserError


@pytest.fixture
def snapshot(tmp_path) -> Path:
    """A snapshot folder as Hugging Face's cache has it: its files are links to blobs beside it."""
    repository = tmp_path / "hub" / "datasets--a--b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    (snapshot / "images").mkdir(parents=True)
    (blobs / "5f2a").write_bytes(image_bytes())
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/5f2a")
    return snapshot


@pytest.fixture
def disk(tmp_path) -> Path:
    """A folder on another disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "b.png").write_bytes(image_bytes())
    return disk


def test_snapshots_of_hugging_face_are_read_as_they_lie(snapshot):
    assert opened(Folder(snapshot, 10_000).picture("images/a.png")).size == (20, 10)
    # Also below the snapshot, as image_root may be.
    assert opened(Folder(snapshot / "images", 10_000).picture("a.png")).size == (20, 10)


def test_only_the_blobs_of_the_same_repository_count(snapshot, tmp_path):
    other = tmp_path / "hub" / "datasets--c--d" / "blobs"
    other.mkdir(parents=True)
    (other / "77").write_bytes(image_bytes())
    (snapshot / "c.png").symlink_to(other / "77")
    with pytest.raises(SampleError, match="data.follow_links"):
        Root(snapshot).file("c.png")


def test_a_link_to_another_disk_needs_the_setting_which_the_message_names(snapshot, disk):
    (snapshot / "coco").symlink_to(disk)
    with pytest.raises(SampleError) as caught:
        opened(Folder(snapshot, 10_000).picture("coco/b.png"))
    assert caught.value.cause == "image outside its root"
    assert "'coco/b.png' is a link that leaves" in str(caught.value)
    assert "data.follow_links: true" in str(caught.value)
    assert opened(Folder(snapshot, 10_000, follow_links=True).picture("coco/b.png")).size == (
        20,
        10,
    )


def test_the_setting_reaches_every_part_of_a_mixture(tmp_path, disk):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(disk)
    record = {"image": "images/b.png", "conversations": turns("<image>what?", "red")}
    write_lines(tmp_path / "data" / "a.jsonl", record)
    (tmp_path / "mix.yaml").write_text("a: {path: data/a.jsonl}\n")
    for follow_links in (False, True):
        config = DataConfig(
            source="mixture", path=str(tmp_path / "mix.yaml"), follow_links=follow_links
        )
        image = open_source(config, 0).sample(0).images[0]
        if follow_links:
            assert opened(image).size == (20, 10)
        else:
            with pytest.raises(SampleError, match="follow_links"):
                opened(image)


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize(
    "name", ["../disk/b.png", "/etc/passwd", "coco/../../disk/b.png", "a/../../disk/b.png"]
)
def test_a_name_leaves_its_root_under_no_setting(snapshot, disk, name, follow_links):
    (snapshot / "coco").symlink_to(disk)
    with pytest.raises(SampleError) as caught:
        Root(snapshot, follow_links).file(name)
    assert caught.value.cause == "image outside its root"
    assert "follow_links" not in str(caught.value)


def test_two_dots_after_a_link_mean_the_folder_of_the_link(snapshot, disk, tmp_path):
    """Not the one of its target, where the operating system would go."""
    (snapshot / "coco").symlink_to(disk)
    (tmp_path / "secret.png").write_bytes(image_bytes())
    assert Root(snapshot, follow_links=True).file("coco/../secret.png") == snapshot / "secret.png"


def test_links_within_the_root_and_a_root_that_is_a_link(tmp_path, disk):
    (disk / "again.png").symlink_to("b.png")
    (tmp_path / "root").symlink_to(disk)
    assert Root(tmp_path / "root").file("again.png") == disk / "b.png"
    assert Root(tmp_path / "root").file(str(disk / "b.png")) == disk / "b.png"


def test_a_folder_of_shards_follows_the_same_rule(snapshot, disk):
    write_tar(disk / "0.tar", {"0.png": image_bytes()})
    os.link(disk / "0.tar", snapshot.parents[1] / "blobs" / "99")
    (snapshot / "0.tar").symlink_to("../../blobs/99")
    assert files_of(snapshot, ".tar") == [snapshot / "0.tar"]
    (snapshot / "1.tar").symlink_to(disk / "0.tar")
    with pytest.raises(UserError, match="data.path: file path '1.tar' is a link.*follow_links"):
        files_of(snapshot, ".tar")
    assert len(files_of(snapshot, ".tar", follow_links=True)) == 2
    assert files_of(snapshot / "1.tar", ".tar") == [snapshot / "1.tar"]  # named by the user


def test_a_file_that_exists_is_that_file_before_any_pattern(tmp_path):
    for name in ("part[1].tar", "part1.tar", "what?.tar", "whats.tar", "a*.tar", "ab.tar"):
        (tmp_path / name).write_bytes(b"")
    for name in ("part[1].tar", "what?.tar", "a*.tar"):
        assert files_of(tmp_path / name, ".tar") == [tmp_path / name]
    assert files_of(tmp_path / "part?.tar", ".tar") == [tmp_path / "part1.tar"]
    (tmp_path / "run[2]").mkdir()
    (tmp_path / "run[2]" / "0.TAR").write_bytes(b"")
    assert files_of(tmp_path / "run[2]", ".tar") == [tmp_path / "run[2]" / "0.TAR"]
    assert files_of(tmp_path / "run[2]" / "*.TAR", ".tar") == [tmp_path / "run[2]" / "0.TAR"]


def test_what_a_desktop_leaves_in_a_folder_is_no_data(tmp_path):
    for name in ("0.tar", "._0.tar", ".hidden.tar"):
        (tmp_path / name).write_bytes(b"")
    assert files_of(tmp_path, ".tar") == [tmp_path / "0.tar"]
    assert files_of(tmp_path / "*.tar", ".tar") == [tmp_path / "0.tar"]
    clip = tmp_path / "clip"
    clip.mkdir()
    for name in ("0.png", "1.png", "._0.png", ".DS_Store", "Thumbs.db"):
        (clip / name).write_bytes(image_bytes())
    assert len(Folder(tmp_path, 10_000).video("clip", 1.0).content) == 2


def test_a_path_without_files_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match="the folder holds no .tar file"):
        files_of(tmp_path, ".tar")
    for name in ("gone.tar", "*.tar", "[.tar", "a" * 5000):
        with pytest.raises(UserError, match="data.path: .*(there is no such file|too long)"):
            files_of(tmp_path / name, ".tar")


def test_a_video_of_an_impossible_name_is_missing(tmp_path):
    with pytest.raises(SampleError) as caught:
        Folder(tmp_path, 10_000).video("a" * 5000, 1.0)
    assert caught.value.cause == "missing video" and len(str(caught.value)) < 500
