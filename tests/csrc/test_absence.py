"""Why a library of csrc/ cannot be used is told in one line."""

from pathlib import Path

import pytest
import torch

from metamorph_kernels import cpu_library, cuda_library

load = cuda_library._load.__wrapped__  # not cached: the library of this process stays as it is
LIBRARIES = [(cpu_library, "METAMORPH_CPU"), (cuda_library, "METAMORPH_CUDA")]


@pytest.fixture
def loaded(monkeypatch):
    monkeypatch.setattr(cuda_library, "_load", lambda: None)


def test_stands_beside_the_package():
    assert cuda_library.LIBRARY.parent == Path(cuda_library.__file__).parent
    assert cuda_library.LIBRARY.name == "metamorph_ops.abi3.so"


@pytest.mark.parametrize(("library", "variable"), LIBRARIES)
def test_not_built(monkeypatch, tmp_path, library, variable):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.abi3.so")
    assert library._load.__wrapped__().startswith(f"not built; install with {variable}=1")


@pytest.mark.parametrize(("library", "variable"), LIBRARIES)
def test_built_of_older_sources(monkeypatch, library, variable):
    if library._load() is not None:
        pytest.skip(library._load())
    monkeypatch.setitem(library.FAKES, "of_tomorrow", None)
    reason = library._load.__wrapped__()
    assert reason == "built of older sources, which lack of_tomorrow; build it again"


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


def test_no_function_in_cpp_runs_without_the_library(monkeypatch):
    monkeypatch.setattr(cpu_library, "_load", lambda: "not built")
    x = torch.ones(2, 3)
    lengths = torch.ones(2, dtype=torch.int64)
    calls = [
        lambda: cpu_library.decode_attention_cpp(x[None], x[None, None], x[None, None], lengths, 1),
        lambda: cpu_library.prefill_attention_cpp(x[None], x[None, None], x[None, None], x, x, 1),
        lambda: cpu_library.rotate_cpp(x[None], x[None], x[None], 1),
        lambda: cpu_library.rms_norm_cpp(x, x[0], 1e-5),
        lambda: cpu_library.swiglu_cpp(x),
        lambda: cpu_library.store_cpp(*[x] * 6),
        lambda: cpu_library.emit_greedy_cpp(x, x, lengths, 0, *[lengths] * 4, x, x),
    ]
    assert len(calls) == len(cpu_library.FAKES)
    for call in calls:
        with pytest.raises(ValueError, match=r"the C\+\+ library cannot run here: not built"):
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
