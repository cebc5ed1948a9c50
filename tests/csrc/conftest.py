"""Compiles csrc/ for the tests, once for each state of its sources, where nvcc and CMake are here.

test_on_gpu.py needs none of this: it takes the library that stands beside the package.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
BUILT = ROOT / "build" / "tests-csrc"


@dataclass(frozen=True)
class BuiltLibrary:
    path: Path
    report: str  # what nvcc and ptxas printed


@pytest.fixture(scope="session")
def setup_script() -> ModuleType:
    """kernels/setup.py as a module: its functions, without a build."""
    spec = importlib.util.spec_from_file_location("metamorph_setup", ROOT / "kernels/setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nvcc(setup_script) -> str:
    found = setup_script.find_nvcc()
    if found is None:
        pytest.skip("nvcc is not installed")
    return found


@pytest.fixture(scope="session")
def built_library(setup_script, nvcc, tmp_path_factory) -> BuiltLibrary:
    """The library as CMakeLists.txt builds it, for sm_90a alone."""
    cmake = setup_script.find_cmake()
    if cmake is None:
        pytest.skip("CMake is not installed")

    def build(folder: Path) -> None:
        work = tmp_path_factory.mktemp("cmake")
        _run(
            *(cmake, "-S", ROOT, "-B", work, f"-DPython_EXECUTABLE={sys.executable}"),
            *(f"-DCMAKE_CUDA_COMPILER={nvcc}", "-DCMAKE_CUDA_ARCHITECTURES=90a-real"),
            "-DCMAKE_CUDA_FLAGS=-Xptxas=-v",
        )
        report = _run(cmake, "--build", work, "--target", "metamorph_ops")
        shutil.move(work / "metamorph_ops.abi3.so", folder)
        (folder / "report.txt").write_text(report)

    folder = _cached("library", nvcc, build)
    return BuiltLibrary(folder / "metamorph_ops.abi3.so", (folder / "report.txt").read_text())


@pytest.fixture(scope="session")
def rows_on_cpu(nvcc) -> Path:
    """The row functions compiled for the CPU (rows_on_cpu.cu)."""

    def build(folder: Path) -> None:
        _run(
            *(nvcc, "-shared", "-std=c++20", "-O1", "-Xcompiler=-fPIC", "-arch=sm_90"),
            "-diag-suppress=20014",  # the team of CPU threads has no code for the GPU
            *("-I", ROOT / "csrc", ROOT / "tests/csrc/rows_on_cpu.cu", "-o", folder / "rows.so"),
        )

    return _cached("rows", nvcc, build) / "rows.so"


def _cached(name: str, nvcc: str, build: Callable[[Path], None]) -> Path:
    """A folder that `build` has filled for these very sources, compiler and torch."""
    sources = [ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").glob("*.[ch]*"))]
    sources += [Path(__file__), Path(__file__).with_name("rows_on_cpu.cu")]
    state = hashlib.sha256(_run(nvcc, "--version").encode() + torch.__version__.encode())
    for source in sources:
        state.update(source.read_bytes())
    folder = BUILT / f"{name}-{state.hexdigest()[:16]}"
    if folder.exists():
        return folder
    for outdated in BUILT.glob(f"{name}-*"):
        shutil.rmtree(outdated, ignore_errors=True)
    # Elsewhere until it is complete: somebody else may run the tests at the same time.
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT, ignore_cleanup_errors=True) as scratch:
        unfinished = Path(scratch) / name
        unfinished.mkdir()
        build(unfinished)
        if not folder.exists():
            unfinished.replace(folder)
    return folder


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout
