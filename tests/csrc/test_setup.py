"""METAMORPH_CUDA decides whether an installation builds the library, and says why it cannot."""

import subprocess

import pytest
from setuptools import Distribution


@pytest.fixture
def machine(setup_script, monkeypatch):
    """Pretends what is installed: machine(nvcc=..., cmake=..., torch=...)."""

    def pretend(nvcc=True, cmake=True, torch=True):
        monkeypatch.setattr(setup_script, "find_nvcc", lambda: "/opt/nvcc" if nvcc else None)
        monkeypatch.setattr(setup_script, "find_cmake", lambda: "/opt/cmake" if cmake else None)
        monkeypatch.setattr(setup_script.importlib.util, "find_spec", lambda name: torch or None)
        monkeypatch.setattr(setup_script.sys, "platform", "linux")

    monkeypatch.delenv("METAMORPH_CUDA", raising=False)
    return pretend


def test_auto_builds_where_all_is_here(machine, setup_script, monkeypatch):
    machine()
    assert setup_script.builds_library()
    monkeypatch.setenv("METAMORPH_CUDA", "auto")
    assert setup_script.builds_library()
    monkeypatch.setattr(setup_script.sys, "platform", "darwin")
    assert not setup_script.builds_library()


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("nvcc", "nvcc was not found on PATH"),
        ("cmake", "`pip install cmake` brings it"),
        ("torch", "then this with --no-build-isolation"),
    ],
)
def test_what_is_missing(machine, setup_script, monkeypatch, missing, reason):
    machine(**{missing: False})
    assert not setup_script.builds_library()
    monkeypatch.setenv("METAMORPH_CUDA", "1")
    with pytest.raises(SystemExit, match=f"^METAMORPH_CUDA=1, but .*{reason}"):
        setup_script.builds_library()


def test_never_and_always(machine, setup_script, monkeypatch):
    machine()
    monkeypatch.setenv("METAMORPH_CUDA", "1")
    assert setup_script.builds_library()
    monkeypatch.setenv("METAMORPH_CUDA", "0")
    assert not setup_script.builds_library()


@pytest.mark.parametrize("choice", ["", "yes", "Auto"])
def test_unknown_choice(machine, setup_script, monkeypatch, choice):
    machine()
    monkeypatch.setenv("METAMORPH_CUDA", choice)
    with pytest.raises(SystemExit, match=f"METAMORPH_CUDA: expected 0, 1 or auto, got '{choice}'"):
        setup_script.builds_library()


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


def test_sources_of_the_extension(setup_script):
    extension = setup_script.library()
    assert {"../csrc/ops.cpp", "../csrc/cosine_rows.cu"} <= set(extension.sources)
    assert {"../CMakeLists.txt", "../csrc/row.cuh", "../csrc/kernels.h"} <= set(extension.depends)


def test_a_failed_build_says_how_to_go_without(machine, setup_script, monkeypatch, tmp_path):
    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)

    machine()
    monkeypatch.setattr(setup_script.subprocess, "run", fail)
    build = setup_script.CMakeBuild(Distribution({"ext_modules": [setup_script.library()]}))
    build.build_lib = build.build_temp = str(tmp_path)
    build.ensure_finalized()
    with pytest.raises(SystemExit, match="METAMORPH_CUDA=0 installs without it"):
        build.build_extension(build.extensions[0])
