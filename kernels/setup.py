"""Builds the ops in C++ and CUDA C++ with CMake; everything else stands in pyproject.toml.

Their sources, csrc/ and CMakeLists.txt, stand one folder up, for they are no part of the Python
package. A source distribution carries a copy of them.

Two environment variables decide, METAMORPH_CPU on the library for CPUs and METAMORPH_CUDA on the
one for GPUs: "auto", the default, builds it where its compiler, CMake and torch are found, "1"
stops the installation where one of them is missing, "0" never builds it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
SOURCES = ("CMakeLists.txt", "csrc")
ROOT = HERE if (HERE / "csrc").exists() else HERE.parent  # of the sources


def find_nvcc() -> str | None:
    """nvcc on PATH, in CUDA_HOME, or where NVIDIA's installer puts it."""
    folders = [folder for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if folder]
    elsewhere = os.pathsep.join(f"{folder}/bin" for folder in folders)
    return shutil.which("nvcc") or shutil.which("nvcc", path=elsewhere)


def find_cmake() -> str | None:
    """The CMake of this Python's own package `cmake`, else one on PATH."""
    return shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")


def find_compiler() -> str | None:
    """The C++ compiler that CMake takes: CXX, or a usual name on PATH."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    return next((path for path in map(shutil.which, names) if path), None)


@dataclass(frozen=True)
class Library:
    """A library of csrc/: its file, the environment variable that decides, its folder's sources."""

    target: str
    variable: str
    folder: str
    compiler: Callable[[], str | None]
    no_compiler: str

    def obstacle(self) -> str | None:
        """The first thing that is missing to build it, or None."""
        if sys.platform != "linux":
            return f"it builds on Linux, and this is {sys.platform}"
        if not (ROOT / "csrc").exists():
            return "csrc/ was not found beside kernels/ or in it"
        if self.compiler() is None:
            return self.no_compiler
        if find_cmake() is None:
            return "CMake was not found; `pip install cmake` brings it"
        if importlib.util.find_spec("torch") is None:
            return "torch was not found; install it first, then this with --no-build-isolation"
        return None

    def is_built(self) -> bool:
        """What its variable asks for; SystemExit where that is unknown or impossible."""
        choice = os.environ.get(self.variable, "auto")
        if choice not in ("0", "1", "auto"):
            raise SystemExit(f"{self.variable}: expected 0, 1 or auto, got {choice!r}")
        reason = self.obstacle() if choice != "0" else None
        if choice == "1" and reason is not None:
            raise SystemExit(f"{self.variable}=1, but {reason}")
        return choice != "0" and reason is None

    def extension(self) -> Extension:
        files = sorted(os.path.relpath(path, HERE) for path in ROOT.glob(f"{self.folder}/*.[ch]*"))
        cmake = os.path.relpath(ROOT / "CMakeLists.txt", HERE)
        return Extension(
            f"metamorph_kernels.{self.target}",
            sources=[name for name in files if name.endswith((".cu", ".cpp"))],
            depends=[cmake, *(name for name in files if name.endswith((".cuh", ".h")))],
            py_limited_api=True,  # it does not depend on the Python version at all
        )


CPU = Library(
    "metamorph_cpu_ops",
    "METAMORPH_CPU",
    "csrc/cpu",
    lambda: find_compiler(),
    "a C++ compiler was not found in CXX or as c++, g++ or clang++ on PATH",
)
CUDA = Library(
    "metamorph_ops",
    "METAMORPH_CUDA",
    "csrc",
    lambda: find_nvcc(),
    "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda",
)
LIBRARIES = (CPU, CUDA)


class CMakeBuild(build_ext):
    """Lets CMake write a library to where setuptools expects an extension module."""

    def build_extension(self, extension: Extension) -> None:
        path = Path(self.get_ext_fullpath(extension.name)).resolve()
        [library] = [each for each in LIBRARIES if extension.name.endswith(f".{each.target}")]
        folder = Path(self.build_temp, library.target)
        configure = [
            *(find_cmake(), "-S", str(ROOT), "-B", str(folder)),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={path.parent}",
            f"-DCMAKE_CUDA_COMPILER={find_nvcc() if library is CUDA else 'OFF'}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        build = [find_cmake(), "--build", str(folder), "--target", library.target, "--parallel"]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(build, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"{path.name} did not compile, for the reason above; {library.variable}=0 installs "
                "without it."
            ) from error


class SourceDistribution(sdist):
    """Puts the sources of the libraries beside this file."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(base_dir, name), dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, base_dir)


if __name__ == "__main__":
    setup(
        ext_modules=[library.extension() for library in LIBRARIES if library.is_built()],
        cmdclass={"build_ext": CMakeBuild, "sdist": SourceDistribution},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
