"""What a study leaves behind: its numbers as JSON, as tables and as drawings."""

from pathlib import Path

from metamorph.disk import write_text
from metamorph.evaluation.report import write_report
from metamorph.study.folder import STUDY
from metamorph.study.found import Found
from metamorph.study.plan import Records
from metamorph.study.plots import draw
from metamorph.study.tables import tables

TABLES = "tables.md"


def write_results(output: Path, records: Records) -> None:
    """Writes `study.json`, `tables.md` and a drawing of each figure that has points."""
    found = [Found.of(figure, records) for figure in records.plan.figures]
    figures = {each.figure.name: each.described() for each in found}
    write_report(output / STUDY, {"grid": records.plan.described(), "figures": figures})
    write_text(output / TABLES, "\n".join(tables(each) for each in found))
    for each in found:
        if each.done:
            draw(each, output / f"{each.figure.name}.png")
