"""A folder of pictures as a source: what counts, in which order; pictures without words."""

import os
from pathlib import Path

import pytest
from data_files import image_bytes, turns, write_lines
from PIL import Image

from metamorph.config import DataConfig
from metamorph.data.formats.picture_folder import PictureFolder
from metamorph.data.images import opened
from metamorph.data.opening import open_source
from metamorph.data.pictures import Pictures, PictureStream
from metamorph.errors import SampleError, UserError
from metamorph.pixels import Square


def put(folder: Path, *names: str, content: bytes | None = None) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes() if content is None else content)
    return folder


def test_pictures_of_all_folders_in_the_order_of_their_numbers(tmp_path):
    put(tmp_path, "10.png", "2.png", "day 10/a.JPG", "day 9/b.webp", "day 9/IMG_12.png", "x.tiff",
        "day 9/img_3.png")  # fmt: skip
    assert PictureFolder(tmp_path, 1000).names == [
        "2.png", "10.png", "day 9/b.webp", "day 9/img_3.png", "day 9/IMG_12.png", "day 10/a.JPG",
        "x.tiff",
    ]  # fmt: skip


def test_other_files_and_what_a_desktop_leaves_are_passed_over(tmp_path):
    put(tmp_path, "a.png", "notes.txt", "films/a.mp4", "jpg", ".hidden.png", "._a.png", ".DS_Store")
    put(tmp_path, ".thumbnails/a.png", "__MACOSX/a.png", "__MACOSX/in/a.png", "Thumbs.db")
    assert PictureFolder(tmp_path, 1000).names == ["a.png"]


def test_what_is_no_readable_picture_is_a_counted_skip(tmp_path):
    put(tmp_path, "a.jpg")
    put(tmp_path, "b.jpg", "phone.HEIC", content=b"no picture")
    put(tmp_path, "empty.png", content=b"")
    source = open_source(DataConfig(source="pictures", path=str(tmp_path)), 0, words=False)
    square = Square(8, Image.Resampling.BILINEAR, "squash")
    stream = PictureStream(Pictures(source, square, square).sample, len(source))
    for _ in range(4):
        next(stream)
    assert len(source) == 4 and stream.skips.counts["corrupt image"] >= 3
    message = stream.skips.examples["corrupt image"]
    assert str(tmp_path) in message


def test_links_within_the_folder_are_followed_once_and_circles_end(tmp_path):
    put(tmp_path / "mine", "trip/a.png", "b.png")
    (tmp_path / "mine" / "trip" / "up").symlink_to("..")
    (tmp_path / "mine" / "again").symlink_to("trip")
    (tmp_path / "mine" / "c.png").symlink_to("b.png")
    assert len(PictureFolder(tmp_path / "mine", 1000).names) == 3


def test_a_link_out_of_the_folder_needs_the_setting_which_the_message_names(tmp_path):
    put(tmp_path / "disk", "a.png")
    put(tmp_path / "mine", "b.png")
    (tmp_path / "mine" / "disk").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match="data.path: .*'disk' is a link.*data.follow_links: true"):
        PictureFolder(tmp_path / "mine", 1000)
    allowed = PictureFolder(tmp_path / "mine", 1000, follow_links=True)
    assert allowed.names == ["b.png", "disk/a.png"]
    assert opened(allowed.record(1).picture("image")).size == (20, 10)
    (tmp_path / "mine" / "disk").unlink()
    (tmp_path / "mine" / "a.png").symlink_to(tmp_path / "disk" / "a.png")
    with pytest.raises(SampleError, match="data.follow_links"):
        opened(PictureFolder(tmp_path / "mine", 1000).record(0).picture("image"))


def test_a_folder_that_cannot_be_used_says_why(tmp_path):
    put(tmp_path, "a.png", "empty/notes.txt")
    for path, problem in (
        (tmp_path / "a.png", "a.png is a file, expected a folder of pictures"),
        (tmp_path / "gone", "gone does not exist, expected a folder"),
        (tmp_path / "empty", "empty holds no picture"),
    ):
        with pytest.raises(UserError, match=f"data.path: .*{problem}"):
            PictureFolder(path, 1000)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refused(place):
        if "locked" in str(place):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match="locked cannot be read: Permission denied"):
        PictureFolder(tmp_path, 1000)


def test_a_folder_of_pictures_has_no_words_to_learn_from(tmp_path):
    put(tmp_path, "a.png")
    config = DataConfig(source="pictures", path=str(tmp_path))
    with pytest.raises(UserError, match="data.source: .*without a word.*only stage decoder"):
        open_source(config, 0)
    (tmp_path / "mixture.yaml").write_text("mine: {source: pictures, path: .}\n")
    mixture = DataConfig(source="mixture", path=str(tmp_path / "mixture.yaml"))
    with pytest.raises(UserError, match="part 'mine': data.source: .*only stage decoder"):
        open_source(mixture, 0)
    assert opened(open_source(mixture, 0, words=False).sample(0).images[0]).size == (20, 10)
    config.family = "edits"
    with pytest.raises(UserError, match="data.family: source pictures does not use it"):
        open_source(config, 0, words=False)


@pytest.mark.parametrize(
    ("family", "record", "count"),
    [
        ("conversations", {"image": "a.png"}, 1),
        ("conversations", {"image": ["a.png", "a.png"], "conversations": "broken"}, 2),
        ("conversations", {"conversations": turns("hi", "ho")}, 0),
        ("captions", {"image": "a.png"}, 1),
        ("edits", {"original_image": "a.png", "edited_image": "a.png"}, 2),
    ],
)
def test_records_without_words_suffice_where_none_are_needed(tmp_path, family, record, count):
    put(tmp_path, "a.png")
    path = write_lines(tmp_path / "data.jsonl", record)
    sample = open_source(DataConfig(path=str(path), family=family), 0, words=False).sample(0)
    assert len(sample.images) == count and sample.where.endswith("data.jsonl:1")
