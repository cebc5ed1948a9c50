"""Tars that are damaged, cut off or made to mislead: read to the damage, which is counted."""

import io
import struct
import tarfile
import time
from pathlib import Path

import pytest
from data_files import image_bytes, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from metamorph.data.families.pictures import captions
from metamorph.data.formats.tar import DAMAGED, UNSAFE, Member, members
from metamorph.data.formats.web_dataset import WebDataset
from metamorph.data.sources import RecordSource
from metamorph.errors import SampleError, UserError

HERE = Path(__file__).parent
PAIRS = {
    f"{n}.{kind}": data for n in range(3) for kind, data in (("png", image_bytes()), ("txt", b"a"))
}
SIZE_FIELD = slice(124, 136)


def outcomes(path: Path) -> list[str]:
    """What becomes of each sample: `good`, or the cause of its skip."""
    source, found = RecordSource(WebDataset(path, 10_000, {}), captions, 0, False), []
    for index in range(len(source)):
        try:
            for image in source.sample(index).images:
                image.open()
            found.append("good")
        except SampleError as error:
            assert str(error).startswith(str(path))
            found.append(error.cause)
    return found


def sealed(header: bytearray) -> bytes:
    """A header with its checksum made right."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_size(path: Path, number: int, size: bytes) -> Path:
    """The tar with the size of its nth header written over."""
    data = bytearray(path.read_bytes())
    offsets = [0]
    for member in members(path):
        offsets.append(member.offset + -(-member.size // 512) * 512)
    at = offsets[number]
    header = data[at : at + 512]
    header[SIZE_FIELD] = size
    data[at : at + 512] = sealed(header)
    path.write_bytes(bytes(data))
    return path


def base_256(size: int) -> bytes:
    """A size as GNU tar writes one that octal digits cannot hold."""
    first = b"\xff" if size < 0 else b"\x80"
    return first + (size % 256**11).to_bytes(11, "big")


def test_whole_tars_hold_nothing_else(tmp_path):
    assert outcomes(write_tar(tmp_path / "a.tar", PAIRS)) == ["good"] * 3


@pytest.mark.parametrize("name", ["tar_negative_size.tar", "tar_overflow.tar"])
def test_sizes_that_led_backwards_or_beyond_64_bits(name):
    assert outcomes(HERE / name)[-1] == DAMAGED


@pytest.mark.parametrize("size", [-1, -512, -(2**62), 2**40, 2**62, 2**64, 2**80])
def test_the_samples_before_an_absurd_size_are_good_and_the_rest_is_counted(tmp_path, size):
    path = with_size(write_tar(tmp_path / "a.tar", PAIRS), 2, base_256(size))
    assert outcomes(path) in (["good", DAMAGED], ["good", "malformed record", DAMAGED])


def test_a_tar_that_was_cut_off(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", PAIRS).read_bytes()
    cut = tmp_path / "cut.tar"
    for length, expected in (
        (4 * 512 + 100, ["good", DAMAGED]),  # within a header
        (5 * 512 + 10, ["good", DAMAGED]),  # within a picture
        (4 * 512, ["good", DAMAGED]),  # between two files
        (12 * 512, ["good"] * 3 + [DAMAGED]),  # only the end is lost
        (13 * 512, ["good"] * 3),
    ):
        cut.write_bytes(whole[:length])
        assert outcomes(cut) == expected, length


@pytest.mark.parametrize("damage", ["text", "gzip", "zip", "empty", "header"])
def test_what_is_no_tar_from_its_start_is_a_user_error_that_says_what_it_is(tmp_path, damage):
    path = write_tar(tmp_path / "a.tar", PAIRS)
    words = {
        "gzip": "it is compressed with gzip",
        "zip": "it is compressed with zip",
        "empty": "it is empty",
    }
    if damage == "gzip":
        with tarfile.open(path, "w:gz"):
            pass
    else:
        content = {"text": b"hello " * 1000, "zip": b"PK\3\4" * 400, "empty": b""}
        path.write_bytes(content.get(damage, b"x" + path.read_bytes()[1:]))
    with pytest.raises(
        UserError, match=f"a.tar is not an uncompressed tar: {words.get(damage, '')}"
    ):
        list(members(path))


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["a/0.txt", "d" * 90 + "/" + "n" * 95 + ".txt", "größe/0.txt"])
def test_long_and_foreign_names_of_every_form(tmp_path, form, name):
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        add(tar, name, b"hello")
        add(tar, "last.txt", b"world")
    found = list(members(tmp_path / "a.tar"))
    assert [member.name for member in found] == [name, "last.txt"]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [member.offset for member in found] == [each.offset_data for each in tar]


def test_fields_of_pax_count_for_one_file_or_for_all(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "x" * 300}) as tar:
        add(tar, "0.txt", b"hello", pax_headers={"path": "renamed.txt", "size": "5"})
        add(tar, "1.txt", b"world")
    assert [(m.name, m.size) for m in members(path)] == [("renamed.txt", 5), ("1.txt", 5)]


@pytest.mark.parametrize("size", ["-5", "1e9", "9" * 30, "9" * 400, "", "0x10"])
def test_an_absurd_size_in_a_field_is_damage(tmp_path, size):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.txt", b"hello")
        add(tar, "1.txt", b"world", pax_headers={"size": size})
    first, last = members(path)
    assert first == Member("0.txt", 512, 5) and last.problem[0] == DAMAGED


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_or_field_that_claims_all_memory_is_damage(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.txt", b"hello")
        add(tar, "1.txt", b"world")
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[156:157], header[SIZE_FIELD] = kind, base_256(2**34)
    data[1024:1536] = sealed(header)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(2**35)  # a file with holes: it takes no room on the disk
    assert [member.problem and member.problem[0] for member in members(path)] == [None, DAMAGED]


@pytest.mark.parametrize(
    "content", [b"0 path=\n", b"999 path=a\n", b"x", b"12 path=a\nb", b"11path=a\n"]
)
def test_broken_fields_of_pax_are_damage(tmp_path, content):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.txt", b"hello")
        add(tar, "fields", content, type=tarfile.XHDTYPE)
        add(tar, "1.txt", b"world")
    assert [member.problem and member.problem[0] for member in members(path)] == [None, DAMAGED]


def test_fields_of_pax_are_read_in_one_pass_whatever_fills_up_their_block(tmp_path):
    path = tmp_path / "a.tar"
    fields = b"5 a=\n" * 100_000
    with tarfile.open(path, "w") as tar:
        add(tar, "fields", fields.ljust(2**20, b"\0"), type=tarfile.XHDTYPE)
        add(tar, "0.txt", b"hello")
    started = time.monotonic()
    assert [member.name for member in members(path)] == ["0.txt"]
    assert time.monotonic() - started < 2  # it was 12 s


@pytest.mark.parametrize("kind", [b"D", b"M", b"N", b"V", b"A"])
def test_entries_of_foreign_types_are_passed_over_with_their_bytes(tmp_path, kind):
    """Such as the lists of folders that GNU tar writes into incremental backups."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "0.lst", b"x" * 600, type=kind)
        add(tar, "1.txt", b"hello")
    listed, file = members(path)
    assert listed.problem == (UNSAFE, "member '0.lst' is not a plain file")
    assert (file.name, file.offset, file.problem) == ("1.txt", 2048, None)


def test_files_with_holes_are_refused_by_name_and_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "0.txt", b"hello")
        add(tar, "1.txt", b"world", type=tarfile.GNUTYPE_SPARSE)
        add(tar, "2.txt", b"there")
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[386:482] = (b"00000000000\0" * 8)[:96]
    header[482:495] = struct.pack("b", 1) + b"00000000005\0"  # one more header follows
    data[1024:1536] = sealed(header)
    data[1536:1536] = bytes(512)
    path.write_bytes(bytes(data))
    found = {member.name: member.problem for member in members(path)}
    assert found["0.txt"] is found["2.txt"] is None
    assert found["1.txt"][0] == UNSAFE and "sparse" in found["1.txt"][1]


def test_two_files_of_one_name_in_a_sample_are_ambiguous(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.png", "0.txt", "0.PNG", "1.png", "1.txt"):
            add(tar, name, image_bytes() if name.lower().endswith("png") else b"a")
    assert outcomes(tmp_path / "a.tar") == ["duplicate tar member", "good"]


@settings(max_examples=50)
@given(data=st.data())
def test_no_bytes_bring_it_out_of_step(tmp_path_factory, data):
    """Members come in order, within the file, and end; whatever is written over a tar."""
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    content = bytearray(write_tar(path, dict(list(PAIRS.items())[:3])).read_bytes()[: 8 * 512])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        written = data.draw(st.binary(min_size=1, max_size=16))
        content[at : at + len(written)] = written
        if data.draw(st.booleans()):
            block = at // 512 * 512
            content[block : block + 512] = sealed(content[block : block + 512].ljust(512, b"\0"))
    path.write_bytes(bytes(content))
    place = 0
    try:
        for member in members(path):
            assert place <= member.offset and member.offset + member.size <= len(content)
            place = member.offset + member.size
    except UserError as error:
        assert "is not an uncompressed tar" in str(error)
