"""Builds the CUDA C++ ops of csrc/ with CMake; everything else stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


class CMakeBuild(build_ext):
    """Lets CMake write the library to where setuptools expects an extension module."""

    def build_extension(self, extension: Extension) -> None:
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        configure = [
            *("cmake", "-S", str(ROOT), "-B", self.build_temp),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", self.build_temp, "--parallel"], check=True)


sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.cu"))
# The library is independent of the Python version, which abi3 in its file name says.
ops = Extension("metamorph_kernels.metamorph_ops", sources, py_limited_api=True)
setup(ext_modules=[ops] if sources else [], cmdclass={"build_ext": CMakeBuild})
