"""Tars that lie elsewhere: in fsspec's memory, and behind a server of this machine."""

import io
import tarfile
from pathlib import Path

import fsspec
import pytest

from metamorph.data.remote import downloads
from tests.data.data_files import image_bytes


def tar_of(*captions: str) -> bytes:
    """A WebDataset tar of pictures with these captions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, caption in enumerate(captions):
            for ending, data in (("png", image_bytes()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def elsewhere():
    """fsspec's file system in memory, with three tars in /pairs."""
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/pairs/{number}.tar", tar_of(*(f"{number}-{n}" for n in range(4))))
    yield memory
    memory.rm("/pairs", recursive=True)


@pytest.fixture
def impatient(monkeypatch) -> list[float]:
    """No pause is waited for; those that would have been."""
    pauses: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def copies(tmp_path) -> Path:
    return tmp_path / "copies"
