"""What a study would train, and what of it is done."""

from pathlib import Path

from metamorph.evaluation.report import text_table
from metamorph.study.folder import joined
from metamorph.study.plan import Plan, Records, seconds_of


def listing(output: Path, plan: Plan, jobs: int) -> str:
    """Figures, then the trainings of each cell. Raises `UserError` for a folder of another study.

    Nothing is written.
    """
    plan = joined(output, plan)
    records = Records(output, plan)
    done = {cell: 0 for cell in plan.cells}
    for training in records.done:
        done[training.cell] += 1
    rows = []
    for figure in plan.figures:
        for cell in figure.cells:
            seconds = sum(seconds_of(t, plan.scale) for t in plan.trainings if t.cell == cell)
            of = len(plan.seeds)
            rows.append([figure.name, cell.name, f"{done[cell]} of {of}", f"{seconds:.0f}"])
    titles = [f"{figure.name:<4} {figure.title}" for figure in plan.figures]
    minutes = records.seconds_left() / jobs / 60
    return "\n".join(
        [
            *titles,
            "",
            text_table(["figure", "cell", "done", "seconds"], rows, names=2),
            "",
            f"{len(records.done)} of {len(plan.trainings)} trainings are done (a cell of several "
            f"figures is trained once); the rest takes about {minutes:.0f} minutes of {jobs} "
            f"{'core' if jobs == 1 else 'cores'}",
        ]
    )
