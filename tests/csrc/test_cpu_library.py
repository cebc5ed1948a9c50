"""The library for CPUs needs no more than its documentation says, and tells why it is absent."""

import re
import subprocess

import pytest
import torch

from metamorph_kernels import cpu_library

load = cpu_library._load.__wrapped__  # not cached: the library of this process stays as it is
needs_library = pytest.mark.skipif(not cpu_library.LIBRARY.exists(), reason="not built")


def test_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_library, "LIBRARY", tmp_path / "metamorph_cpu_ops.abi3.so")
    assert load().startswith("not built; install with METAMORPH_CPU=1")


def test_torch_cannot_load_it(monkeypatch, tmp_path):
    library = tmp_path / "metamorph_cpu_ops.abi3.so"
    library.write_text("no library at all")
    monkeypatch.setattr(cpu_library, "LIBRARY", library)
    assert load().startswith(f"torch {torch.__version__} cannot load it: {library}: ")


@needs_library
def test_built_of_older_sources(monkeypatch):
    monkeypatch.setitem(cpu_library.FAKES, "newer", None)
    assert load() == "built of older sources, which lack newer; build it again"


def test_it_is_for_cpus(monkeypatch):
    monkeypatch.setattr(cpu_library, "_load", lambda: None)
    assert cpu_library.cpp_absence("cpu") is None
    for device in ("cuda", "meta"):
        assert cpu_library.cpp_absence(device) == "C++ kernels run on a CPU only"


def test_no_function_runs_without_it(monkeypatch):
    monkeypatch.setattr(cpu_library, "_load", lambda: "not built")
    x = torch.ones(2, 3)
    lengths = torch.ones(2, dtype=torch.int64)
    calls = [
        lambda: cpu_library.decode_attention_cpp(x[None], x[None, None], x[None, None], lengths, 1),
        lambda: cpu_library.prefill_attention_cpp(x[None], x[None, None], x[None, None], x, x, 1),
        lambda: cpu_library.rotate_cpp(x[None], x[None], x[None], 1),
        lambda: cpu_library.rms_norm_cpp(x, x[0], 1e-5),
        lambda: cpu_library.swiglu_cpp(x),
        lambda: cpu_library.linear_cpp(x, x),
        lambda: cpu_library.store_cpp(*[x] * 6),
        lambda: cpu_library.emit_greedy_cpp(x, x, lengths, 0, *[lengths] * 4, x, x),
    ]
    assert len(calls) == len(cpu_library.FAKES)
    for call in calls:
        with pytest.raises(ValueError, match=r"the C\+\+ library cannot run here: not built"):
            call()


@needs_library
def test_needs_only_the_stable_abi():
    names = [line.split()[-1] for line in _lines("nm", "-D", "--undefined-only")]
    torch_names = {name for name in names if "torch" in name or "c10" in name}
    assert "torch_parallel_for" in torch_names
    assert not [name for name in torch_names if not re.match(r"(aoti_)?torch_\w+$", name)]
    assert not [name for name in names if re.match(r"_ZNK?(2at|3c10|5torch)", name)]


@needs_library
def test_a_level_lends_no_code_to_another():
    """A function that several levels compiled would be that of one of them, for all."""
    for line in _lines("nm", "--defined-only", "-C"):
        kind, name = line.split(maxsplit=2)[1:]
        assert kind != "W" or not re.search(r"metamorph::cpu::(?!\(anonymous)", name), name


def _lines(*command: str) -> list[str]:
    done = subprocess.run(
        [*command, cpu_library.LIBRARY], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()
