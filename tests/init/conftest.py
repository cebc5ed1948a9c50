"""Models and data in small, for which run files are proposed."""

from pathlib import Path

import pytest

from tests.data.data_files import image_bytes, turns, write_lines
from tests.tiny_run import write_language, write_vision


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_language(folder / "llama")
    write_vision(folder / "siglip", patch=8)
    return folder


@pytest.fixture
def here(tiny_models, tmp_path, monkeypatch) -> Path:
    """A working directory with `models`, `data.jsonl` of two questions and their `pictures`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(tiny_models)
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "pictures" / name).write_bytes(image_bytes())
    write_lines(
        tmp_path / "data.jsonl",
        {"image": "a.png", "conversations": turns("<image>What is it?", "A circle.")},
        {"image": "b.png", "conversations": turns("Draw a circle.", "<image>")},
    )
    return tmp_path
