"""Command-line arguments that say what they expect."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from metamorph.errors import UserError


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least` and, if given, at most `most`."""
    limits = f"at least {least}" if most is None else f"from {least} to {most}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            message = f"expected a whole number, {limits}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return value

    return convert


def number(*, above_zero: bool = False, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite number of at least 0, or above it, and of at most `most`."""
    limits = "above 0" if above_zero else "at least 0"
    if most < math.inf:
        limits += f", at most {most:g}"

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = 0 < value if above_zero else 0 <= value
        if not (fits and value <= most and value < math.inf):
            raise argparse.ArgumentTypeError(f"expected a number, {limits}, got {text!r}")
        return value

    return convert


def check_new(folder: Path) -> None:
    """Raises `UserError` if something is there: nothing is overwritten."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} exists, expected a new or an empty folder")
