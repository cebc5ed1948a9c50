"""metrics.jsonl of a run folder: a line of values every `training.log_every` steps."""

import json
from pathlib import Path


class MetricsFile:
    """Appends JSON lines; on resume drops the lines past the checkpoint's step."""

    def __init__(self, folder: Path, resumed_step: int):
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= resumed_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.path)

    def write(self, **values) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(folder: Path) -> list[dict]:
    """All lines of a run's `metrics.jsonl`; a last line cut short by a crash is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n") if path.exists() else [""]
    whole = lines[:-1]  # what follows the last line break is empty, or was cut
    return [json.loads(line) for line in whole]
