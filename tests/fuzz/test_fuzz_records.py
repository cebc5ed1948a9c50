"""Records of every format and family, broken: each is a sample, a counted skip, or the one sentence
that says why the file cannot be opened."""

import io
import json
import tarfile
from contextlib import chdir
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from metamorph.config import DataConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.documents import Documents
from metamorph.data.opening import open_source
from metamorph.data.toy.tokenizer import build_toy_tokenizer
from metamorph.errors import SampleError
from metamorph.model.opening import add_image_tokens
from tests.data.data_files import turns, write_lines
from tests.fuzz.breaking import broken_bytes, broken_json, json_bytes, strange
from tests.fuzz.harness import judge
from tests.six_families import write_six_families

MAX_PIXELS = 100_000
FAMILIES = {  # file of the page: its family and where its pictures lie
    "image_qa": ("conversations", "images"),
    "video_qa": ("video_questions", "videos"),
    "pure_video": ("video_frames", "videos"),
    "visual_thinking": ("boxes", "images"),
    "generation": ("captions", "images"),
    "image_to_image": ("edits", "images"),
}


@cache
def chat_encoder() -> ChatEncoder:
    tokenizer = build_toy_tokenizer()
    add_image_tokens(tokenizer)
    return ChatEncoder(tokenizer, 4)


def read_all(config: DataConfig) -> str:
    """The first samples of a source, as training prepares them."""
    config.max_pixels = MAX_PIXELS
    documents = Documents(open_source(config, 0), chat_encoder(), 4096)
    outcome = "read"
    for index in range(min(len(documents), 20)):
        try:
            documents.document(index)
        except SampleError as error:
            if (outcome := judge(str(error), error.cause)) != "refused":
                return outcome
    return outcome


def write_all_families(folder: Path) -> None:
    write_six_families(folder)
    pair = {"original_image": "cat.jpg", "edited_image": "dog.jpg", "edit_prompt": "make it a dog"}
    write_lines(folder / "generation.jsonl", {"image": "cat.jpg", "caption": "a cat"})
    write_lines(folder / "image_to_image.jsonl", pair)


def attack_lines(chance: Random, folder: Path) -> str:
    name = chance.choice(sorted(FAMILIES))
    family, pictures = FAMILIES[name]
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    place = chance.randrange(len(lines))
    broken = json_bytes(chance, broken_json(chance, json.loads(lines[place])))
    data = b"\n".join([*(line.encode() for line in lines[:place]), broken])
    if chance.random() < 0.1:
        data = broken_bytes(chance, data)
    if chance.random() < 0.1:
        data = b"[" + data.replace(b"\n", b",") + b"]"
    with TemporaryDirectory() as below:
        fuzzed = Path(below, "data.json" if chance.random() < 0.2 else "data.jsonl")
        fuzzed.write_bytes(data)
        root = str(folder / pictures)
        return read_all(
            DataConfig(source="jsonl", path=str(fuzzed), image_root=root, family=family)
        )


@pytest.mark.slow
def test_lines_of_six_families(fuzzed, tmp_path):
    write_all_families(tmp_path)
    fuzzed(attack_lines, 800)


def write_shard(folder: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "PNG")
    with tarfile.open(folder / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            for ending, data in (
                ("png", picture.getvalue()),
                ("json", json.dumps({"conversations": turns("<image>q", "a")}).encode()),
                ("txt", b"a cat"),
            ):
                member = tarfile.TarInfo(f"{'long/' * 30 * (number == 2)}{number}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def broken_tar(chance: Random, data: bytes) -> bytes:
    """A tar whose headers lie and whose checksums agree, or one broken as bytes."""
    if chance.random() < 0.3:
        return broken_bytes(chance, data)
    broken = bytearray(data)
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(chance.choice((1, 1, 2, 4))):
        head = chance.choice(heads)
        start, length = chance.choice(
            ((0, 100), (100, 8), (124, 12), (124, 12), (124, 12), (136, 12), (156, 1), (345, 155))
        )
        field = bytearray(broken[head + start : head + start + length])
        match chance.randrange(5):
            case 0:
                field[:] = b"\x80" + bytes(length - 1) if length > 1 else b"\x80"
                field[-8:] = chance.choice((2**62, 2**63, 2**40, 512, 2**64 - 512)).to_bytes(8)[
                    -len(field[-8:]) :
                ]
            case 1:
                field[:] = b"\xff" * length
            case 2:
                field[:] = chance.choice((b"7" * length, b" " * length, b"-1" * length))[:length]
            case 3:
                field[:] = chance.choice(b"\x00 0123456789LKxgVSDM".decode()).encode() * length
            case 4:
                field[chance.randrange(length)] = chance.randrange(256)
        broken[head + start : head + start + length] = field
        broken[head + 148 : head + 156] = b" " * 8
        total = sum(broken[head : head + 512])
        broken[head + 148 : head + 156] = b"%06o\0 " % total
    return bytes(broken)


def attack_tar(chance: Random, folder: Path) -> str:
    with TemporaryDirectory() as below:
        fuzzed = Path(below, "0.tar")
        fuzzed.write_bytes(broken_tar(chance, (folder / "0.tar").read_bytes()))
        family = chance.choice(("captions", "conversations"))
        return read_all(DataConfig(source="webdataset", path=str(fuzzed), family=family))


@pytest.mark.slow
def test_tars(fuzzed, tmp_path):
    write_shard(tmp_path)
    fuzzed(attack_tar, 1200)


def write_rows(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, "PNG")
    rows = [
        {
            "image": {"bytes": picture.getvalue(), "path": None},
            "caption": f"a cat {number}",
            "conversations": turns("<image>q", "a"),
        }
        for number in range(6)
    ]
    table = pyarrow.Table.from_pylist(rows)
    for name, options in (("plain", {"compression": "none"}), ("snappy", {}), ("zstd", {})):
        options = {"compression": name} | options if name == "zstd" else options
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=2, **options)


def attack_parquet(chance: Random, folder: Path) -> str:
    data = chance.choice(sorted(folder.iterdir())).read_bytes()
    with TemporaryDirectory() as below:
        fuzzed = Path(below, "0.parquet")
        fuzzed.write_bytes(broken_bytes(chance, data))
        family = chance.choice(("captions", "conversations"))
        return read_all(DataConfig(source="parquet", path=str(fuzzed), family=family))


@pytest.mark.slow
def test_parquet(fuzzed, tmp_path):
    write_rows(tmp_path)
    fuzzed(attack_parquet, 800)


def attack_cells(chance: Random, folder: Path) -> str:
    """Whole parquet files of what nobody expects in them."""
    import pyarrow
    from pyarrow import parquet

    row = {"image": b"none", "caption": "a cat", "conversations": turns("q", "a")}
    row = broken_json(chance, {**row, "image": None}) if chance.random() < 0.7 else strange(chance)
    with TemporaryDirectory() as below, chdir(below):
        try:
            table = pyarrow.Table.from_pylist([row if isinstance(row, dict) else {"caption": row}])
            parquet.write_table(table, "0.parquet")
        except (pyarrow.ArrowException, OverflowError, UnicodeError, RecursionError):
            return "no parquet file can hold it"
        family = chance.choice(("captions", "conversations"))
        return read_all(DataConfig(source="parquet", path="0.parquet", family=family))


@pytest.mark.slow
def test_parquet_cells(fuzzed):
    pytest.importorskip("pyarrow")
    fuzzed(attack_cells, 300)
