import pytest

from tests.tiny_run import write_language, write_vision


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    write_language(folder / "llama")
    write_vision(folder / "siglip")
    return folder


@pytest.fixture
def folder(parts, tmp_path):
    """A fresh run folder beside links to the random language and vision folders."""
    for name in ("llama", "siglip"):
        (tmp_path / name).symlink_to(parts / name)
    return tmp_path
