"""metrics.jsonl of a run folder: a line of values every `training.log_every` steps."""

import json
from pathlib import Path
from typing import Any

from metamorph.disk import append, write_text


class MetricsFile:
    """Appends JSON lines; on resume drops the lines past the checkpoint's step, and those that
    something else has broken."""

    def __init__(self, folder: Path, resumed_step: int):
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= resumed_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.unwritten = b""  # whole lines that a full disk did not take

    def write(self, **values) -> None:
        """A line, and those before it that could not be written. Raises `OSError` if they still
        cannot: the file then ends with a whole line, as before."""
        self.unwritten += json.dumps(values).encode() + b"\n"
        append(self.path, self.unwritten)
        self.unwritten = b""


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, of which each has a `step`. One that was cut short by a
    crash or is broken otherwise is left out, and a file that cannot be read has none."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not there yet, as a rule
        return []
    lines = [_read_line(line) for line in text.split("\n")]
    return [line for line in lines if line is not None]


def _read_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(line, dict) and type(line.get("step")) is int
    return line if sound else None
