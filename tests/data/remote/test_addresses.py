"""Which files an address stands for."""

import pytest

from metamorph.data.remote.addresses import is_address, tars_at
from metamorph.errors import UserError


def names(address: str) -> list[str]:
    return [file.address for file in tars_at(address)]


def fails(address: str) -> str:
    with pytest.raises(UserError) as refusal:
        tars_at(address)
    return str(refusal.value)


def test_one_tar_a_folder_a_pattern_and_numbers(elsewhere):
    elsewhere.pipe("/pairs/notes.txt", b"no tar")
    every = [f"memory:///pairs/{number}.tar" for number in range(3)]
    assert names("memory://pairs/1.tar") == [every[1]]
    assert names("memory://pairs") == names("memory://pairs/") == every
    assert names("memory://pairs/*.tar") == every
    assert names("memory://pairs/[12].tar") == every[1:]
    assert names("memory://pairs/{0..1}.tar") == every[:2]


def test_numbers_keep_their_zeros(elsewhere):
    for number in (8, 9, 10):
        elsewhere.pipe(f"/pairs/n-{number:03}.tar", b"x")
    assert names("memory://pairs/n-{008..010}.tar") == [
        f"memory:///pairs/n-{number:03}.tar" for number in (8, 9, 10)
    ]


def test_another_version_is_another_file(elsewhere):
    [before] = tars_at("memory://pairs/1.tar")
    elsewhere.pipe("/pairs/1.tar", b"longer than before" * 1000)
    [after] = tars_at("memory://pairs/1.tar")
    assert before != after and after.size == 18_000


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://pairs/9.tar", "there is no such file"),
        ("memory://nowhere/*.tar", "there is no such tar"),
        ("memory://pairs/{5..2}.tar", "expected at most 100000 numbers, in order"),
        ("memory://pairs/{0..999999999}.tar", "expected at most 100000 numbers"),
        ("ftp://host/a.tar", "expected an address that begins with one of https://, http://, s3:"),
        ("simplecache::memory://pairs/1.tar", "expected an address that begins with"),
        ("memory://pairs/1.tar::file://etc", "expected an address that begins with"),
    ],
)
def test_other_addresses_are_one_sentence(elsewhere, address, message):
    assert message in fails(address)


def test_a_store_whose_package_is_absent(monkeypatch):
    import fsspec

    def absent(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    assert "Install s3fs to access S3" in fails("s3://bucket/1.tar")


def test_paths_are_no_addresses():
    assert is_address("s3://bucket/a.tar") and not is_address("a/b.tar")
    assert not is_address("C:/pairs") and not is_address("")
