"""Local copies: whole or not at all, within a limit, shared by processes."""

import io
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from metamorph.data.remote import downloads
from metamorph.data.remote.addresses import tars_at
from metamorph.data.remote.cache import ShardCache
from metamorph.errors import Halted, UserError

LARGE = 10**9


def read(cache: ShardCache, address: str) -> bytes:
    [file] = tars_at(address)
    with cache.open(file) as opened:
        return opened.read()


def content(folder: Path, ending: str = ".tar") -> list[Path]:
    return sorted(folder.glob(f"*{ending}"))


def test_a_copy_is_fetched_once(elsewhere, copies, monkeypatch):
    cache = ShardCache(copies, LARGE)
    assert read(cache, "memory://pairs/0.tar") == elsewhere.cat("/pairs/0.tar")
    monkeypatch.setattr("metamorph.data.remote.cache.pieces", None)  # another fetch would fail
    assert read(cache, "memory://pairs/0.tar") == elsewhere.cat("/pairs/0.tar")
    assert len(content(copies)) == 1 and not content(copies, ".part")


def test_what_was_not_used_for_longest_makes_room(elsewhere, copies):
    size = elsewhere.size("/pairs/0.tar")
    cache = ShardCache(copies, 2 * size)
    addresses = [f"memory://pairs/{number}.tar" for number in range(3)]
    paths = [cache.path_of(tars_at(address)[0], ".tar") for address in addresses]
    for moment, address in enumerate(addresses[:2]):
        read(cache, address)
        os.utime(paths[moment], (moment, moment))
    read(cache, addresses[0])  # now the other one is older
    read(cache, addresses[2])
    assert [path.exists() for path in paths] == [True, False, True]
    assert read(cache, addresses[1]) == elsewhere.cat("/pairs/1.tar")
    assert sum(path.stat().st_size for path in content(copies)) <= 2 * size


def test_a_file_that_is_open_can_be_read_after_it_made_room(elsewhere, copies):
    cache = ShardCache(copies, elsewhere.size("/pairs/0.tar"))
    [file] = tars_at("memory://pairs/0.tar")
    with cache.open(file) as opened:
        read(cache, "memory://pairs/1.tar")
        assert opened.read() == elsewhere.cat("/pairs/0.tar")


def test_a_tar_larger_than_the_limit_is_refused(elsewhere, copies):
    with pytest.raises(UserError, match="data.cache_gigabytes: a tar has .* expected a limit"):
        read(ShardCache(copies, 100), "memory://pairs/0.tar")
    assert not content(copies)


class Flaky:
    """A file system that fails some times before it answers."""

    def __init__(self, filesystem, failures: int, broken: bytes = b""):
        self.filesystem, self.failures, self.broken = filesystem, failures, broken

    def open(self, path, *arguments, **options):
        if self.failures:
            self.failures -= 1
            if self.broken:
                return io.BytesIO(self.broken)
            raise ConnectionResetError("reset by peer")
        return self.filesystem.open(path, *arguments, **options)


def test_it_is_tried_again_after_longer_and_longer_pauses(
    elsewhere, copies, monkeypatch, impatient
):
    flaky = Flaky(elsewhere, 3)
    monkeypatch.setattr(
        "metamorph.data.remote.cache.open_filesystem", lambda address: (flaky, "/pairs/0.tar")
    )
    assert read(ShardCache(copies, LARGE), "memory://pairs/0.tar")
    assert impatient == [1, 2, 4]


def test_half_a_file_is_never_a_copy(elsewhere, copies, monkeypatch, impatient):
    flaky = Flaky(elsewhere, 100, broken=b"half")
    monkeypatch.setattr(
        "metamorph.data.remote.cache.open_filesystem", lambda address: (flaky, "/pairs/0.tar")
    )
    with pytest.raises(Halted, match="memory:///pairs/0.tar cannot be read: 4 bytes came of "):
        read(ShardCache(copies, LARGE), "memory://pairs/0.tar")
    assert len(impatient) == downloads.ATTEMPTS - 1
    assert not content(copies) and not content(copies, ".part")


def test_silence_is_given_up(elsewhere, copies, monkeypatch, impatient):
    never = threading.Event()

    class Silent:
        def open(self, *arguments, **options):
            never.wait(5)

    monkeypatch.setattr(downloads, "SILENCE", 0.01)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    monkeypatch.setattr(
        "metamorph.data.remote.cache.open_filesystem", lambda address: (Silent(), "x")
    )
    with pytest.raises(Halted, match="nothing came for 0.01 seconds"):
        read(ShardCache(copies, LARGE), "memory://pairs/0.tar")
    never.set()


def test_what_a_killed_process_left_is_removed(elsewhere, copies):
    copies.mkdir()
    (copies / "abandoned.1.part").write_bytes(b"x" * 1000)
    cache = ShardCache(copies, elsewhere.size("/pairs/0.tar") + 500)
    read(cache, "memory://pairs/0.tar")
    assert not content(copies, ".part")


def _read_all(folder: Path, copies: Path, limit: int) -> int:
    cache = ShardCache(copies, limit)
    files = tars_at(f"file://{folder}/*.tar")
    total = 0
    for _ in range(3):
        for file in files:
            with cache.open(file) as opened:
                total += sum(opened.read())
    return total


def test_processes_share_a_cache_that_holds_less_than_all(elsewhere, copies, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(elsewhere.cat(f"/pairs/{number}.tar"))
    limit = 2 * elsewhere.size("/pairs/0.tar")
    arguments = tmp_path, copies, limit
    expected = 3 * sum(sum(path.read_bytes()) for path in content(tmp_path))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.starmap_async(_read_all, [arguments] * 3).get(100) == [expected] * 3
    assert not content(copies, ".part")
