"""Why the CUDA library cannot be used is told in one line."""

from pathlib import Path

import pytest
import torch

from metamorph_kernels import compiled_library, cuda_library

load = cuda_library._load.__wrapped__  # not cached: the library of this process stays as it is


@pytest.fixture
def loaded(monkeypatch):
    monkeypatch.setattr(cuda_library, "_load", lambda: None)


def test_stands_beside_the_package():
    assert cuda_library.LIBRARY.parent == Path(cuda_library.__file__).parent
    assert cuda_library.LIBRARY.name == "metamorph_ops.abi3.so"


def test_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "LIBRARY", tmp_path / "metamorph_ops.abi3.so")
    assert load().startswith("not built; install with METAMORPH_CUDA=1")


def test_built_of_older_sources(monkeypatch):
    monkeypatch.setattr(compiled_library.torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(cuda_library, "LIBRARY", Path(__file__))
    monkeypatch.setattr(cuda_library, "FAKES", {"newer": None})
    assert load() == "built of older sources, which lack newer; build it again"


def test_torch_cannot_load_it(monkeypatch, tmp_path):
    library = tmp_path / "metamorph_ops.abi3.so"
    library.write_text("no library at all\n" * 100)
    monkeypatch.setattr(cuda_library, "LIBRARY", library)
    reason = load()
    assert reason.startswith(f"torch {torch.__version__} cannot load it: {library}: ")
    assert "\n" not in reason


def test_first_reason_is_that_of_the_library(monkeypatch):
    monkeypatch.setattr(cuda_library, "_load", lambda: "not built")
    assert cuda_library.cuda_absence("cpu") == "not built"
    x = torch.ones(2, 3)
    calls = [
        lambda: cuda_library.cosine_rows(x, x, with_gradient=True),
        lambda: cuda_library.pool_normalize_rows(x[None], 1),
        lambda: cuda_library.quantise_rows(x),
        lambda: cuda_library.scale_in_place(x, x[0, 0]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the CUDA library cannot run here: not built"):
            call()


def test_device(loaded, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    assert cuda_library.cuda_absence("cpu") == "no kernels for cpu devices"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_library.cuda_absence("cuda") == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert cuda_library.cuda_absence("cuda").startswith("compute capability 7.5;")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert cuda_library.cuda_absence("cuda") is None
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert cuda_library.cuda_absence("cuda") == "no kernels for cuda devices"
