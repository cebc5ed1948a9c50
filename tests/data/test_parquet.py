"""Parquet: images as bytes in cells, read a row group at a time."""

import pickle
import shutil
import sys
from pathlib import Path

import pyarrow
import pytest
from data_files import image_bytes, turns
from pyarrow import parquet

from metamorph.data.families.pictures import captions, conversations, edits
from metamorph.data.formats import row_groups
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
    monkeypatch.setattr(
        "metamorph.data.formats.parquet.read_group",
        lambda *group: read.append(group) or row_groups.read_group(*group),
    )
    first = [source.sample(i).id for i in range(20)]
    assert len(set(read)) == len(read) == 6  # 4 + 4 + 2 rows, twice
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


def bombs() -> dict[str, pyarrow.Array]:
    """Columns that stand for gigabytes, or would with larger numbers: 2 MiB here."""
    value = pyarrow.array([b"x" * 2048])
    same = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1024, pyarrow.int32()), value)
    each, every = pyarrow.array(range(1025), pyarrow.int32()), pyarrow.array([0, 1024], "int32")
    beginnings = [b"x" * 2048 + b"%d" % number for number in range(1024)]
    return {
        "one value for all rows": same,
        "in a list a row": pyarrow.ListArray.from_arrays(each, same),
        "in one list": pyarrow.ListArray.from_arrays(every, same),
        "in a struct": pyarrow.StructArray.from_arrays([same], ["bytes"]),
        "whole numbers": pyarrow.array([0] * 300_000, pyarrow.int64()),
        "nothing at all": pyarrow.nulls(300_000, pyarrow.string()),
        "of one width": pyarrow.array([b"x" * 2048] * 1024, pyarrow.binary(2048)),
        "one large value": pyarrow.array([b"x" * 2**21]),
        "the same beginnings": pyarrow.array(beginnings),
        "the same beginnings in a list": pyarrow.ListArray.from_arrays(
            every, pyarrow.array(beginnings)
        ),
    }


@pytest.mark.parametrize("kind", bombs())
def test_row_groups_have_a_limit_decoded(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(row_groups, "LARGEST_GROUP", 2**20)
    column, encoding = bombs()[kind], {}
    if "beginnings" in kind:
        name = "image.list.element" if "list" in kind else "image"
        encoding = {"use_dictionary": False, "column_encoding": {name: "DELTA_BYTE_ARRAY"}}
    table = pyarrow.table({"image": column, "caption": ["a"] * len(column)})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", **encoding)
    assert (tmp_path / "a.parquet").stat().st_size < 30_000
    try:
        open_rows(tmp_path / "a.parquet").sample(0)
    except UserError as error:  # by the metadata
        assert "data.path: row group 0 of" in str(error) and "when decoded" in str(error)
    except SampleError as error:  # when it is read
        assert error.cause == "row group too large" and "when decoded" in str(error)
    else:
        pytest.fail("it was used")


def test_a_file_of_572_bytes_is_not_decoded_to_gigabytes(tmp_path):
    shutil.copy(Path(__file__).parent / "parquet_dictionary_bomb.parquet", tmp_path)
    source = open_rows(tmp_path)
    before = pyarrow.total_allocated_bytes()
    with pytest.raises(SampleError, match="3600 MiB or more when decoded, at most 512 MiB"):
        source.sample(0)
    assert pyarrow.default_memory_pool().bytes_allocated() - before < 2**26


def test_why_a_row_group_cannot_be_used_is_found_once(tmp_path, monkeypatch):
    rows = [{"image": image_bytes(), "caption": "a"}] * 10
    source = open_rows(write(tmp_path / "a.parquet", rows, group=10))
    read = []

    def fail(file, number):
        read.append(number)
        raise SampleError("unreadable row group", f"{file}: it is broken")

    monkeypatch.setattr("metamorph.data.formats.parquet.read_group", fail)
    for index in range(10):
        with pytest.raises(SampleError, match="it is broken"):
            source.sample(index)
    assert read == [0]


def test_only_the_cells_that_are_asked_for_become_python_objects(tmp_path, monkeypatch):
    monkeypatch.setattr("metamorph.data.formats.parquet.MOST_VALUES", 100)
    rows = [{"image": image_bytes(), "caption": "a", "embedding": [[0.0] * 20] * 20}]
    source = open_rows(write(tmp_path / "a.parquet", rows))
    assert source.sample(0).images[0].open()
    with pytest.raises(SampleError, match="'embedding': its lists hold more than 100 values"):
        open_rows(tmp_path / "a.parquet", caption="embedding").sample(0)


@pytest.mark.parametrize("kind", ["string", "large_string", "large_binary", "binary", "dictionary"])
@pytest.mark.parametrize("largest", [1, 2**26])  # bytes of a column whose values are stored once
def test_every_kind_of_text_and_bytes_is_read(tmp_path, monkeypatch, kind, largest):
    monkeypatch.setattr(row_groups, "BATCH", largest)
    if kind == "dictionary":
        caption = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    else:
        caption = pyarrow.array(["a", "b", "a"]).cast(kind if "string" in kind else "string")
    image = pyarrow.array([image_bytes()] * 3, "large_binary" if "large" in kind else "binary")
    parquet.write_table(pyarrow.table({"image": image, "caption": caption}), tmp_path / "a.parquet")
    source = open_rows(tmp_path / "a.parquet")
    prompts = [source.sample(index).turns[0].text[-2:] for index in range(3)]
    assert prompts == ["a.", "b.", "a."]
    assert source.sample(2).images[0].open().size == (20, 10)


def test_columns_of_maps_cost_nothing_and_are_read(tmp_path):
    pairs = [[("colour", "red")], None, [], [("a", "b"), ("c", "d")]]
    tags = pyarrow.array(pairs, pyarrow.map_(pyarrow.string(), pyarrow.string()))
    table = pyarrow.table({"image": [image_bytes()] * 4, "caption": list("abcd"), "tags": tags})
    parquet.write_table(table, tmp_path / "a.parquet")
    records = Parquet(tmp_path / "a.parquet", 10_000, {})
    assert [records.record(row).get("tags") for row in range(4)] == pairs
    assert row_groups.values_in(tags.slice(3)) == 4
    assert row_groups.values_in(tags.slice(1, 2)) == 0


def test_without_pyarrow_the_reason_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", [{"caption": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="data.source: parquet cannot be used.*pyarrow"):
        open_rows(path)
