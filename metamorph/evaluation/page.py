"""The report of an evaluation as one page: its tables with intervals drawn, and its drawings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from metamorph.disk import write_text
from metamorph.evaluation.report import text_table
from metamorph.static_page.page import page_templates

PAGE = "report.html"


@dataclass(frozen=True)
class Line:
    """A measure: `cells` say it in words, by their headings, and `estimate` is what is drawn, a
    mean with its interval and what guessing scores where that is known. `share`: of all samples;
    `signed`: a difference of two."""

    name: str
    cells: dict[str, str]
    estimate: dict
    share: bool
    signed: bool = False

    def at(self, key: str) -> float:
        """Where a value of the estimate is drawn, from 0 to 100: shares on all that they can be,
        differences on both sides of zero, others from zero to the largest, be it what guessing
        scores."""
        return self._place(self.estimate[key])

    @property
    def zero(self) -> float:
        return self._place(0.0)

    def _place(self, value: float) -> float:
        least = min(0.0, self.estimate["low"])
        most = max(0.0, self.estimate["high"], self.estimate.get("chance", 0.0))
        if self.share:
            least, most = 0.0, 1.0
        if self.signed:
            most = max(-least, most)
            least = -most
        return round(100 * (value - least) / ((most - least) or 1.0), 2)


@dataclass(frozen=True)
class Table:
    """Lines of one suite or decoder, all with cells of the same headings."""

    title: str
    about: str
    lines: Sequence[Line]


def in_text(tables: Sequence[Table]) -> str:
    """The lines of all tables below each other, for a terminal."""
    lines = [(table.title, line) for table in tables for line in table.lines]
    heads = [*lines[0][1].cells] if lines else []
    rows = [(title, line.name, *line.cells.values()) for title, line in lines]
    return text_table(("suite", "measure", *heads), rows, names=2)


def write_page(
    folder: Path,
    title: str,
    lead: str,
    tables: Sequence[Table],
    notes: Sequence[str],
    report: dict,
    sheet: Image.Image | None = None,
) -> None:
    """Writes `folder/report.html`, whole or not at all.

    Args:
        report: how it was made: `command`, and `seed`, `device` and `versions` where it has them.
        sheet: the drawings to show, if there are any.
    """
    templates = page_templates(Path(__file__).parent)
    page = templates.get_template("report.html.jinja").render(
        title=title, lead=lead, tables=tables, notes=notes, report=report, sheet=sheet
    )
    write_text(folder / PAGE, page)
