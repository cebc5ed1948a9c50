"""JSONL files with pictures: the format, the order, and everything that can be wrong with them."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from metamorph.config import DataConfig
from metamorph.data.conversation import ASSISTANT, USER, Turn
from metamorph.data.families.pictures import conversations
from metamorph.data.formats.json_lines import JsonLines
from metamorph.data.images import opened
from metamorph.data.opening import open_source
from metamorph.data.sources import RecordSource
from metamorph.data.toy.source import ToyScenes
from metamorph.errors import SampleError, UserError


def conversation(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / "images" / name)
    return tmp_path


def write(folder: Path, *records, shuffle=False, seed=0, max_pixels=10_000) -> RecordSource:
    path = folder / "data.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    records = JsonLines(path, folder / "images", max_pixels, {})
    return RecordSource(records, conversations, seed, shuffle)


def cause_of(source: RecordSource, index: int = 0) -> tuple[str, str]:
    """Why a sample cannot be used: found when it is read, or when its images are opened."""
    with pytest.raises(SampleError) as caught:
        sample = source.sample(index)
        assert sample.where.endswith(f"data.jsonl:{index + 1}")
        for image in sample.images:
            opened(image)
    return caught.value.cause, str(caught.value)


def test_one_image_several_images_and_none(folder):
    source = write(
        folder,
        {"id": "qa", "image": "a.png", "conversations": conversation("<image>what?", "red")},
        {
            "id": "i2i",
            "image": ["a.png", "b.jpg"],
            "conversations": conversation("<image>", "<image>"),
        },
        {"id": "text", "conversations": conversation("hello", "hi")},
    )
    assert [len(source.sample(i).images) for i in range(3)] == [1, 2, 0]
    assert source.sample(0).turns == (Turn(USER, "<image>what?"), Turn(ASSISTANT, "red"))
    assert source.sample(0).images[0].open().mode == "RGB"
    assert source.sample(3).id == "qa"  # the next epoch begins


def test_order_is_a_pure_function_of_seed_epoch_and_index(folder):
    records = [{"id": str(i), "conversations": conversation("q", "a")} for i in range(20)]
    first = write(folder, *records, shuffle=True)
    again = write(folder, *records, shuffle=True)
    backwards = [again.sample(i).id for i in reversed(range(40))][::-1]
    order = [first.sample(i).id for i in range(40)]
    assert order == backwards
    assert sorted(order[:20]) == sorted(order[20:]) == sorted(str(i) for i in range(20))
    assert order[:20] != order[20:]
    other = write(folder, *records, shuffle=True, seed=1)
    assert order[:20] != [other.sample(i).id for i in range(20)]


def test_blank_lines_are_no_samples_and_lines_are_named(folder):
    source = write(folder, "", {"conversations": conversation("q", "a")}, "", "{oops")
    assert len(source) == 2
    cause, message = cause_of(source, 1)
    assert cause == "malformed record" and "data.jsonl:4" in message


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"id": "x"},
        {"conversations": [{"from": "alien", "value": "hi"}]},
        {"conversations": [{"from": "human"}]},
        {"conversations": "hello"},
        {"conversations": [{"from": "human", "value": None}]},
        {"conversations": [{"from": "human", "value": 3}]},
        {"conversations": [{"from": "human", "value": "\ud800"}]},
        {"image": 5, "conversations": conversation("q", "a")},
        {"image": False, "conversations": conversation("q", "a")},
        {"image": ["a.png", None], "conversations": conversation("q", "a")},
        {"image": {"a.png": 1}, "conversations": conversation("q", "a")},
        {"image": ["a.png"] * 1001, "conversations": conversation("q", "a")},
        "[" * 100_000,
        "9" * 10_000,
    ],
    ids=lambda record: str(record)[:40],
)
def test_malformed_records(folder, record):
    good = {"conversations": conversation("q", "a")}
    assert cause_of(write(folder, good, record), 1)[0] == "malformed record"


def test_an_id_is_a_line_that_can_be_printed(folder):
    """It is shown in messages, and seeds what is drawn by chance."""
    source = write(folder, {"id": "\ud800\n\x1b[2J", "conversations": conversation("q", "a")})
    assert source.sample(0).id == r"\ud800\n\x1b[2J"


def test_a_null_image_is_no_image(folder):
    source = write(folder, {"image": None, "conversations": conversation("q", "a")})
    assert source.sample(0).images == ()


@pytest.mark.parametrize("name", ["a\0.png", "a" * 5000, "a/" * 5000, "\ud800.png", "circle"])
def test_names_that_no_file_can_have(folder, name):
    (folder / "images" / "circle").symlink_to(folder / "images" / "circle")
    cause, message = cause_of(write(folder, picture_record(name)))
    assert cause == "missing image"
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["", ".", "album"])
def test_a_folder_in_place_of_an_image_is_said_to_be_one(folder, name):
    (folder / "images" / "album").mkdir()
    cause, message = cause_of(write(folder, picture_record(name)))
    assert cause == "missing image" and message.endswith("is a folder")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png"])
def test_images_may_not_leave_their_root(folder, name):
    Image.new("RGB", (4, 4)).save(folder / "secret.png")
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    source = write(folder, {"image": name, "conversations": conversation("<image>", "a")})
    cause, message = cause_of(source)
    assert cause == "image outside its root" and "leaves its root" in message


def picture_record(name: str) -> dict:
    return {"image": name, "conversations": conversation("<image>", "a")}


def test_missing_and_corrupt_images(folder):
    (folder / "images" / "text.png").write_text("not a picture")
    whole = (folder / "images" / "b.jpg").read_bytes()
    (folder / "images" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    source = write(folder, *map(picture_record, ("gone.png", "text.png", "half.jpg")))
    assert [cause_of(source, i)[0] for i in range(3)] == [
        "missing image", "corrupt image", "corrupt image",
    ]  # fmt: skip


def test_huge_images_are_refused_before_decoding(folder):
    """A PNG header that claims 60000 x 60000 pixels, without any pixel data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (folder / "images" / "bomb.png").write_bytes(bomb)
    Image.new("RGB", (200, 200)).save(folder / "images" / "big.png")
    source = write(folder, picture_record("bomb.png"), picture_record("big.png"))
    assert cause_of(source, 0)[0] == "image too large"
    cause, message = cause_of(source, 1)
    assert cause == "image too large" and "200 x 200" in message and "10000" in message


def test_files_that_are_not_there_are_user_errors(folder):
    with pytest.raises(UserError, match="data.path.*does not exist"):
        JsonLines(folder / "no.jsonl", folder, 100, {})
    (folder / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no samples"):
        JsonLines(folder / "empty.jsonl", folder, 100, {})
    with pytest.raises(UserError, match="data.image_root"):
        JsonLines(folder / "empty.jsonl", folder / "nowhere", 100, {})


def test_open_source_follows_the_config(folder):
    toy = open_source(DataConfig(source="toy_scenes", kinds={"draw": 1.0}, samples=5), seed=3)
    assert isinstance(toy, ToyScenes) and len(toy) == 5
    assert toy.sample(1).id == toy.sample(6).id  # epochs repeat
    with pytest.raises(UserError, match="unknown.*paint"):
        open_source(DataConfig(source="toy_scenes", kinds={"paint": 1.0}), seed=0)


@pytest.mark.parametrize("weights", [{"draw": 0.0}, {"draw": 0.0, "text": 0.0}, {"draw": 1e999}])
def test_some_kind_must_have_a_weight(weights):
    with pytest.raises(UserError, match="data.kinds"):
        ToyScenes(0, weights, 0)


def test_empty_paths_never_mean_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder / "images")
    with pytest.raises(UserError, match="data.path: it is empty"):
        open_source(DataConfig(), seed=0)
    write(folder, picture_record("images/a.png"), picture_record("a.png"))
    source = open_source(DataConfig(path=str(folder / "data.jsonl"), shuffle=False), seed=0)
    assert source.sample(0).images[0].open().size == (20, 10)
    assert cause_of(source, 1)[0] == "missing image"
