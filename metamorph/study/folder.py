"""The folder of a study, which belongs to one scale; figures and seeds may be added.

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
from metamorph.errors import UserError, shown
from metamorph.evaluation.report import write_report
from metamorph.study.figures import figures
from metamorph.study.plan import Plan
from metamorph.study.verdicts import MOST_SEEDS

STUDY = "study.json"


@contextmanager
def claimed_folder(output: Path, plan: Plan) -> Generator[Plan]:
    """Makes the folder, which is this study's for as long as the body runs. Gives the plan with
    what the folder's study already has."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file, expected a folder")
    output.mkdir(parents=True, exist_ok=True)
    with lock.locked(output, "--output"):
        plan = joined(output, plan)
        if not (output / STUDY).exists():
            write_report(output / STUDY, {"grid": plan.described()})
        yield plan


def joined(output: Path, plan: Plan) -> Plan:
    """The plan with the figures and seeds that a folder's study has before it.

    Raises `UserError` unless the folder is new, or its trainings are those of this plan's scale and
    this version.
    """
    if not output.is_dir():
        return plan
    begun = (lock.FILE, f".{STUDY}.")  # the second is of one that was killed at once
    if all(path.name.startswith(begun) for path in output.iterdir()):
        return plan
    found = written_grid(output)
    if found is None:
        raise UserError(f"--output: {output} holds no study, expected a new folder")
    of = ", ".join(found["figures"])
    gone = [name for name in found["figures"] if name not in figures(plan.scale)]
    if gone:
        raise UserError(
            f"--output: {output} holds a study of {of}, by another version of metamorph, for there "
            f"is no {shown(gone[0])}; give a new folder"
        )
    names = [*found["figures"], *(figure.name for figure in plan.figures)]
    whole = Plan.of(names, max(len(found["seeds"]), len(plan.seeds)), plan.scale)
    grid = whole.described()
    if found["scale"] != grid["scale"] or not found["cells"].items() <= grid["cells"].items():
        raise UserError(
            f"--output: {output} holds another study, of {of}, whose trainings have other amounts; "
            f"give a new folder, or --smoke as it was given then"
        )
    return whole


def written_grid(output: Path) -> dict | None:
    """The grid that the study of a folder was begun with; None where it holds no study."""
    try:
        grid = json.loads((output / STUDY).read_text(encoding="utf-8"))["grid"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return grid if _is_grid(grid) else None


def _is_grid(grid: object) -> bool:
    """Is it of the form that `Plan.described` has?"""
    if not isinstance(grid, dict):
        return False
    names, seeds = grid.get("figures"), grid.get("seeds")
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(seeds, list)
        and seeds == [*range(len(seeds))]
        and len(seeds) <= MOST_SEEDS
        and isinstance(grid.get("scale"), dict)
        and isinstance(grid.get("cells"), dict)
    )
