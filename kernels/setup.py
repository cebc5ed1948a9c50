"""Builds the CUDA C++ ops with CMake; everything else stands in pyproject.toml.

Their sources, csrc/ and CMakeLists.txt, stand one folder up, for they are no part of the Python
package. A source distribution carries a copy of them.

The environment variable METAMORPH_CUDA decides: "auto", its default, builds them where nvcc, CMake
and torch are found, "1" stops the installation where one of them is missing, "0" never builds them.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
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


def obstacle() -> str | None:
    """The first thing that is missing to build the library, or None."""
    if sys.platform != "linux":
        return f"the CUDA library builds on Linux, and this is {sys.platform}"
    if find_nvcc() is None:
        return "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda"
    if find_cmake() is None:
        return "CMake was not found; `pip install cmake` brings it"
    if importlib.util.find_spec("torch") is None:
        return "torch was not found; install it first, then this with --no-build-isolation"
    return None


def builds_library() -> bool:
    """What METAMORPH_CUDA asks for; SystemExit where that is unknown or impossible."""
    choice = os.environ.get("METAMORPH_CUDA", "auto")
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"METAMORPH_CUDA: expected 0, 1 or auto, got {choice!r}")
    reason = obstacle() if choice != "0" else None
    if choice == "1" and reason is not None:
        raise SystemExit(f"METAMORPH_CUDA=1, but {reason}")
    return choice != "0" and reason is None


class CMakeBuild(build_ext):
    """Lets CMake write the library to where setuptools expects an extension module."""

    def build_extension(self, extension: Extension) -> None:
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        configure = [
            *(find_cmake(), "-S", str(ROOT), "-B", self.build_temp),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
            f"-DCMAKE_CUDA_COMPILER={find_nvcc()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run([find_cmake(), "--build", self.build_temp, "--parallel"], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                "The CUDA library did not compile, for the reason above; METAMORPH_CUDA=0 installs "
                "without it."
            ) from error


class SourceDistribution(sdist):
    """Puts the sources of the library beside this file."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(base_dir, name), dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, base_dir)


def library() -> Extension:
    files = sorted(os.path.relpath(path, HERE) for path in ROOT.glob("csrc/*.[ch]*"))
    cmake = os.path.relpath(ROOT / "CMakeLists.txt", HERE)
    return Extension(
        "metamorph_kernels.metamorph_ops",
        sources=[name for name in files if name.endswith((".cu", ".cpp"))],
        depends=[cmake, *(name for name in files if name.endswith((".cuh", ".h")))],
        py_limited_api=True,  # it does not depend on the Python version at all
    )


if __name__ == "__main__":
    setup(
        ext_modules=[library()] if builds_library() else [],
        cmdclass={"build_ext": CMakeBuild, "sdist": SourceDistribution},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
