"""What an evaluation leaves behind: JSON that says how it was made, and a table for people."""

import json
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from PIL import Image

import metamorph
from metamorph.disk import atomic_path, write_text

MODELS = "models"  # the kind of a report of a whole model
TEXT = "text"  # its suite of texts, of which a request is the beginning alone
PACKAGES = ("torch", "transformers", "diffusers", "tokenizers", "safetensors")


def versions(*others: str) -> dict[str, str]:
    """Of Python, of this package, and of those that results depend on; `others` as well."""
    return {
        "python": platform.python_version(),
        "metamorph": metamorph.__version__,
        **{name: version(name) for name in (*PACKAGES, *others)},
    }


def heading(command: Sequence[str], seed: int, device: str, *packages: str) -> dict:
    """How every report begins: the command that made it, its seed, the device and versions, those
    of `packages` as well."""
    return {
        "command": shlex.join(command),
        "seed": seed,
        "device": device,
        "versions": versions(*packages),
    }


def write_report(path: Path, report: dict) -> None:
    """Writes JSON, whole or not at all. Raises `ValueError` for numbers that JSON has not."""
    write_text(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


def write_evaluation(folder: Path, report: dict, sheet: Image.Image | None) -> str:
    """Writes `evaluation.json` and, of a sheet, `samples.png`, each whole or not at all. The report
    is first: of the two it is what took the time. Returns their names, for people."""
    write_report(folder / "evaluation.json", report)
    if sheet is None:
        return "evaluation.json"
    with atomic_path(folder / "samples.png") as temporary:
        sheet.save(temporary, "PNG")
    return "evaluation.json and samples.png"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Columns as wide as their widest cell: the first `names` left-aligned, the rest right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if column < names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
