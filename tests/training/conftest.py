import pytest

from tests.tiny_run import write_language, write_vision


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Parts whose widths, 64 and 32, float8 can multiply, and runs of one module beside them."""
    folder = tmp_path_factory.mktemp("wide")
    write_language(folder / "llama", width=64)
    write_vision(folder / "siglip", width=32)
    return folder
