"""The folder of a study, which belongs to one grid.

study.json   the grid, and what was found: the numbers behind each figure
tables.md    the same for people
f1.png ...   the figures
records/     a file for each finished training
starts/      what the trainings of a seed start from
work/        trainings that are under way
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from metamorph import lock
from metamorph.errors import UserError
from metamorph.evaluation.report import write_report
from metamorph.study.plan import Plan

STUDY = "study.json"


@contextmanager
def claimed_folder(output: Path, plan: Plan) -> Generator[None]:
    """Makes the folder, which is this study's for as long as the body runs."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file, expected a folder")
    output.mkdir(parents=True, exist_ok=True)
    with lock.locked(output, "--output"):
        check_grid(output, plan)
        if not (output / STUDY).exists():
            write_report(output / STUDY, {"grid": plan.described()})
        yield


def check_grid(output: Path, plan: Plan) -> None:
    """Raises `UserError` unless the folder is new, or of this very grid."""
    if not output.is_dir():
        return
    begun = (lock.FILE, f".{STUDY}.")  # the second is of one that was killed at once
    if all(path.name.startswith(begun) for path in output.iterdir()):
        return
    found = written_grid(output)
    if found is None:
        raise UserError(f"--output: {output} holds no study, expected a new folder")
    if found != plan.described():
        raise UserError(
            f"--output: {output} holds another study, of {', '.join(found['figures'])} with seeds "
            f"{', '.join(map(str, found['seeds']))}; give the same figures, seeds and scale to go "
            f"on with it, or a new folder"
        )


def written_grid(output: Path) -> dict | None:
    """The grid that the study of a folder was begun with; None where it holds no study."""
    try:
        grid = json.loads((output / STUDY).read_text(encoding="utf-8"))["grid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return grid if isinstance(grid, dict) and {"figures", "seeds"} <= grid.keys() else None
