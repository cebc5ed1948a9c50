"""Parquet: images as bytes in cells, read a row group at a time."""

import pickle
import sys

import pyarrow
import pytest
from data_files import image_bytes, turns
from pyarrow import parquet

from metamorph.data.families.pictures import captions, conversations, edits
from metamorph.data.formats.parquet import Parquet
from metamorph.data.sources import RecordSource
from metamorph.errors import SampleError, UserError


def write(path, rows: list[dict], group: int = 4):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def open_rows(path, family=captions, shuffle=False, **names) -> RecordSource:
    return RecordSource(Parquet(path, 10_000, names), family, 0, shuffle)


def test_bytes_and_hugging_face_cells(tmp_path):
    rows = [{"image": image_bytes("blue"), "caption": "a sea"}]
    sample = open_rows(write(tmp_path / "a.parquet", rows)).sample(0)
    assert sample.turns[0].text == "Generate an image of a sea."
    assert sample.images[0].open().getpixel((0, 0)) == (0, 0, 255)
    rows = [
        {
            "source": {"bytes": image_bytes("red"), "path": "a.png"},
            "edit_prompt": "turn it blue",
            "edited_image": {"bytes": image_bytes("blue"), "path": None},
        }
    ]
    path = write(tmp_path / "b.parquet", rows)
    sample = open_rows(path, edits, original_image="source").sample(0)
    assert [i.open().getpixel((0, 0))[0] for i in sample.images] == [255, 0]


def test_conversations_with_several_images_and_none(tmp_path):
    rows = [
        {"image": [image_bytes(), image_bytes("blue")],
         "conversations": turns("<image><image>same?", "no")},
        {"image": [], "conversations": turns("hello", "hi")},
        {"image": None, "conversations": turns("hello", "hi")},
    ]  # fmt: skip
    source = open_rows(write(tmp_path / "a.parquet", rows), conversations)
    assert [len(source.sample(i).images) for i in range(3)] == [2, 0, 0]


def test_order_keeps_row_groups_together_and_each_is_read_once(tmp_path, monkeypatch):
    for name in "ab":
        rows = [{"id": f"{name}{i}", "conversations": turns("q", "a")} for i in range(10)]
        write(tmp_path / f"{name}.parquet", rows)
    source = open_rows(tmp_path, conversations, shuffle=True)
    read = []
    original = Parquet._read
    monkeypatch.setattr(Parquet, "_read", lambda s, group: read.append(group) or original(s, group))
    first = [source.sample(i).id for i in range(20)]
    assert sorted(read) == list(range(6))  # 4 + 4 + 2 rows, twice
    second = [source.sample(i).id for i in range(20, 40)]
    assert sorted(first) == sorted(second) and first != second
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.sample(i).id for i in range(20)] == first


def test_bad_cells_are_malformed(tmp_path):
    rows = [{"image": "a.png", "caption": "a"}, {"image": None, "caption": "a"}]
    source = open_rows(write(tmp_path / "a.parquet", rows))
    for index in range(2):
        with pytest.raises(SampleError) as caught:
            source.sample(index)
        assert caught.value.cause == "malformed record"
        assert f"a.parquet row {index} of group 0" in str(caught.value)


def test_files_that_are_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(UserError, match="a.parquet cannot be read as parquet"):
        open_rows(tmp_path)


def test_damage_within_a_file_is_counted(tmp_path):
    rows = [{"image": image_bytes(size=(90, 90)), "caption": f"{i}"} for i in range(20)]
    path = write(tmp_path / "a.parquet", rows, group=10)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(bytes(data))
    with pytest.raises(SampleError) as caught:
        for index in range(20):
            open_rows(path).sample(index)
    assert caught.value.cause == "unreadable row group"


def test_without_pyarrow_the_reason_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", [{"caption": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="data.source: parquet cannot be used.*pyarrow"):
        open_rows(path)
