"""WebDataset tars: how files become records, and that no tar can reach beyond itself."""

import io
import json
import pickle
import tarfile

import pytest
from data_files import image_bytes, turns, write_tar

from metamorph.data.families.pictures import captions, conversations, edits
from metamorph.data.formats.web_dataset import WebDataset
from metamorph.data.sources import RecordSource
from metamorph.errors import SampleError, UserError


def open_tar(path, family=captions, max_pixels=10_000, **names) -> RecordSource:
    return RecordSource(WebDataset(path, max_pixels, names), family, 0, shuffle=False)


def test_captions_of_several_shards(tmp_path):
    for shard in range(2):
        files = {}
        for number in range(3):
            files[f"{shard}{number}.jpg"] = image_bytes("blue", kind="JPEG")
            files[f"{shard}{number}.txt"] = f"thing {shard}{number}.".encode()
        write_tar(tmp_path / f"{shard}.tar", files)
    source = open_tar(tmp_path)
    assert len(source) == 6
    prompts = [source.sample(i).turns[0].text for i in range(6)]
    things = ("00", "01", "02", "10", "11", "12")
    assert prompts == [f"Generate an image of thing {n}." for n in things]
    sample = source.sample(4)
    assert sample.turns[1].text == "Here is an image based on your request: <image>"
    assert sample.images[0].open().size == (20, 10)
    assert sample.where.endswith("1.tar sample 1")
    # A pattern, and a source that another process gets.
    assert len(open_tar(tmp_path / "1*.tar")) == 3
    assert pickle.loads(pickle.dumps(source)).sample(5).turns == source.sample(5).turns


def test_json_holds_fields_and_files_may_name_them(tmp_path):
    talk = {"id": "a", "image": ["left.png", "right.png"],
            "conversations": turns("<image><image>same?", "no")}  # fmt: skip
    write_tar(
        tmp_path / "talk.tar",
        {
            "s/0.left.png": image_bytes("red"),
            "s/0.right.png": image_bytes("blue"),
            "s/0.json": json.dumps(talk).encode(),
        },
    )
    sample = open_tar(tmp_path / "talk.tar", conversations).sample(0)
    assert sample.id == "a"
    assert [i.open().getpixel((0, 0)) for i in sample.images] == [(255, 0, 0), (0, 0, 255)]
    write_tar(
        tmp_path / "edit.tar",
        {
            "0.original_image.png": image_bytes("red"),
            "0.edited_image.png": image_bytes("blue"),
            "0.edit_prompt.txt": b"make it blue",
        },
    )
    sample = open_tar(tmp_path / "edit.tar", edits).sample(0)
    assert sample.turns[0].text == "<image>make it blue"
    assert sample.images[1].open().getpixel((0, 0)) == (0, 0, 255)


def test_other_names_for_fields(tmp_path):
    metadata = json.dumps({"TEXT": "a cat"}).encode()
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(), "0.json": metadata})
    sample = open_tar(tmp_path / "a.tar", caption="TEXT").sample(0)
    assert sample.turns[0].text == "Generate an image of a cat."


def cause(source, index=0) -> str:
    with pytest.raises(SampleError) as caught:
        for image in source.sample(index).images:
            image.open()
    assert "a.tar" in str(caught.value) or source.sample(index).where
    return caught.value.cause


@pytest.mark.parametrize("name", ["/etc/0.png", "../0.png", "a/../../0.png"])
def test_names_that_leave_the_tar_make_their_sample_unusable(tmp_path, name):
    write_tar(tmp_path / "a.tar", {name: image_bytes(), "1.png": image_bytes(), "1.txt": b"b"})
    source = open_tar(tmp_path / "a.tar")
    assert cause(source) == "unsafe tar member"
    assert source.sample(1).images[0].open()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_never_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert cause(open_tar(tmp_path / "a.tar")) == "unsafe tar member"


def test_bad_members_are_causes_of_their_own(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "0.png": b"not a picture", "0.txt": b"a",
            "1.png": image_bytes(size=(200, 200)), "1.txt": b"a",
            "2.txt": b"a",
            "3.png": image_bytes(), "3.json": b"{oops",
            "4.png": image_bytes(), "4.json": b'{"image": "gone.png", "caption": "a"}',
            "5.png": image_bytes(), "5.txt": b"\xff\xfe",
        },
    )  # fmt: skip
    source = open_tar(tmp_path / "a.tar")
    assert [cause(source, i) for i in range(6)] == [
        "corrupt image", "image too large", "malformed record", "malformed record",
        "missing image", "malformed record",
    ]  # fmt: skip
    for index, words in (
        (3, ".json is not valid JSON: expecting"),
        (5, r": \.txt is not UTF-8 text"),
    ):
        with pytest.raises(SampleError, match=words):
            source.sample(index)


def test_folders_in_a_tar_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("pairs")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in (("pairs/0.png", image_bytes()), ("pairs/0.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_tar(tmp_path / "a.tar")
    assert len(source) == 1 and source.sample(0).images[0].open()


@pytest.mark.parametrize(
    ("name", "side", "content", "text"),
    [
        ("0.PNG", "0.TXT", "a cat", "a cat"),
        ("0.Jpg", "0.JSON", '{"caption": "a cat"}', "a cat"),
        ("0.GIF", "0.txt", "\ufeffa cat\r\n", "a cat"),
        ("0.png", "0.json", '\ufeff{"caption": "a cat"}', "a cat"),
        ("0.tiff", "0.json", '{"caption": "a cat", "image": "TIFF"}', "a cat"),
    ],
)
def test_side_files_as_cameras_and_editors_write_them(tmp_path, name, side, content, text):
    write_tar(tmp_path / "a.tar", {name: image_bytes(), side: content.encode()})
    sample = open_tar(tmp_path / "a.tar").sample(0)
    assert sample.turns[0].text == f"Generate an image of {text}."
    assert len(sample.images) == 1


def test_fields_in_names_keep_their_capitals(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": image_bytes(), "0.TEXT.TXT": b"a cat"})
    sample = open_tar(tmp_path / "a.tar", caption="TEXT").sample(0)
    assert sample.turns[0].text == "Generate an image of a cat."


def test_a_tar_made_on_a_mac(tmp_path):
    junk = b"\0\5\x16\7" + b"\0" * 60
    files = {"./.DS_Store": junk, "./._0.png": junk, "./0.png": image_bytes(), "./._0.txt": junk}
    files |= {"./0.txt": b"a cat", "__MACOSX/._0.png": junk, "a/Thumbs.db": junk}
    source = open_tar(write_tar(tmp_path / "a.tar", files))
    assert len(source) == 1 and source.sample(0).images[0].open()


def test_nothing_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no .tar file"):
        open_tar(tmp_path)
    with pytest.raises(UserError, match="holds no samples"):
        open_tar(write_tar(tmp_path / "a.tar", {}))
