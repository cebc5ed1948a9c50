"""METAMORPH_CPU and METAMORPH_CUDA decide whether an installation builds a library, and it says why
it cannot."""

import subprocess

import pytest
from setuptools import Distribution


@pytest.fixture(params=["CPU", "CUDA"])
def library(request, setup_script, monkeypatch):
    library = getattr(setup_script, request.param)
    monkeypatch.delenv(library.variable, raising=False)
    return library


@pytest.fixture
def machine(setup_script, monkeypatch):
    """Pretends what is installed: machine(nvcc=..., compiler=..., cmake=..., torch=...)."""

    def pretend(nvcc=True, compiler=True, cmake=True, torch=True):
        monkeypatch.setattr(setup_script, "find_nvcc", lambda: "/opt/nvcc" if nvcc else None)
        monkeypatch.setattr(setup_script, "find_compiler", lambda: "/opt/c++" if compiler else None)
        monkeypatch.setattr(setup_script, "find_cmake", lambda: "/opt/cmake" if cmake else None)
        monkeypatch.setattr(setup_script.importlib.util, "find_spec", lambda name: torch or None)
        monkeypatch.setattr(setup_script.sys, "platform", "linux")

    return pretend


def test_auto_builds_where_all_is_here(machine, library, setup_script, monkeypatch):
    machine()
    assert library.is_built()
    monkeypatch.setenv(library.variable, "auto")
    assert library.is_built()
    monkeypatch.setattr(setup_script.sys, "platform", "darwin")
    assert not library.is_built()


def test_neither_library_needs_the_compiler_of_the_other(machine, setup_script, monkeypatch):
    machine(nvcc=False)
    assert setup_script.CPU.is_built() and not setup_script.CUDA.is_built()
    machine(compiler=False)
    assert setup_script.CUDA.is_built() and not setup_script.CPU.is_built()


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (("nvcc", "compiler"), "was not found (on PATH, in CUDA_HOME|in CXX or as c\\+\\+)"),
        (("cmake",), "`pip install cmake` brings it"),
        (("torch",), "then this with --no-build-isolation"),
    ],
)
def test_what_is_missing(machine, library, monkeypatch, missing, reason):
    machine(**dict.fromkeys(missing, False))
    assert not library.is_built()
    monkeypatch.setenv(library.variable, "1")
    with pytest.raises(SystemExit, match=f"^{library.variable}=1, but .*{reason}"):
        library.is_built()


def test_without_sources_there_is_nothing_to_build(machine, library, setup_script, monkeypatch):
    machine()
    monkeypatch.setattr(setup_script, "ROOT", setup_script.HERE)
    assert not library.is_built()


def test_never_and_always(machine, library, monkeypatch):
    machine()
    monkeypatch.setenv(library.variable, "1")
    assert library.is_built()
    monkeypatch.setenv(library.variable, "0")
    assert not library.is_built()


@pytest.mark.parametrize("choice", ["", "yes", "Auto"])
def test_unknown_choice(machine, library, monkeypatch, choice):
    machine()
    monkeypatch.setenv(library.variable, choice)
    words = f"{library.variable}: expected 0, 1 or auto, got '{choice}'"
    with pytest.raises(SystemExit, match=words):
        library.is_built()


def test_where_a_compiler_is_looked_for(setup_script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert setup_script.find_compiler() is None
    for name in ("clang++", "g++", "mine"):
        compiler = tmp_path / name
        compiler.write_text("#!/bin/sh\n")
        compiler.chmod(0o755)
    assert setup_script.find_compiler() == str(tmp_path / "g++")
    monkeypatch.setenv("CXX", "mine")
    assert setup_script.find_compiler() == str(tmp_path / "mine")


def test_where_nvcc_is_looked_for(setup_script, monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup_script.find_nvcc() == str(nvcc)
    monkeypatch.setenv("PATH", str(nvcc.parent))
    monkeypatch.delenv("CUDA_HOME")
    assert setup_script.find_nvcc() == str(nvcc)


def test_sources_of_the_extensions(setup_script):
    cuda, cpu = setup_script.CUDA.extension(), setup_script.CPU.extension()
    assert {"../csrc/ops.cpp", "../csrc/cosine_rows.cu"} <= set(cuda.sources)
    assert {"../CMakeLists.txt", "../csrc/row.cuh", "../csrc/kernels.h"} <= set(cuda.depends)
    assert {f"../csrc/cpu/{name}.cpp" for name in ("ops", "emit", "linear", "kernels")} == set(
        cpu.sources
    )
    assert {"../CMakeLists.txt", "../csrc/cpu/vector.h"} <= set(cpu.depends)


def test_a_failed_build_says_how_to_go_without(
    machine, library, setup_script, monkeypatch, tmp_path
):
    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)

    machine()
    monkeypatch.setattr(setup_script.subprocess, "run", fail)
    build = setup_script.CMakeBuild(Distribution({"ext_modules": [library.extension()]}))
    build.build_lib = build.build_temp = str(tmp_path)
    build.ensure_finalized()
    with pytest.raises(SystemExit, match=f"{library.variable}=0 installs without it"):
        build.build_extension(build.extensions[0])
