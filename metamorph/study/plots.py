"""The figures of a study as PNG: every value of every seed, means, and intervals of the means."""

from itertools import cycle
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from metamorph.disk import atomic_path
from metamorph.study.found import Found
from metamorph.study.verdicts import Spread

COLOURS = ("#1b6ca8", "#e07b39", "#4c9f70", "#8a5fb0", "#c94f5d")
STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}
DOTS_PER_INCH = 120
BESIDE = 0.04  # of an amount: from one line to the next


def draw(found: Found, path: Path) -> None:
    """Writes the drawing of one figure, a panel a score."""
    panel = {"lines": _lines, "dots": _dots, "heat": _heat}[found.figure.look]
    scores = found.figure.scores
    with rc_context(STYLE):
        size = max(6.0, 3.6 * len(scores)), 3.8
        figure = Drawing(size, layout="constrained")
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, score in zip(panels, scores, strict=True):
            panel(axes, found, found.spreads[score])
            axes.set_title(fill(f"{score}, %", 30), loc="left", size=9)
            axes.set_xlabel(found.figure.axis)
        handles, labels = panels[0].get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(found.figure.title, size=10)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _series(found: Found, spreads: list[Spread | None]) -> dict[str, list[tuple[str, Spread]]]:
    """The points of each series that have values."""
    lines: dict[str, list[tuple[str, Spread]]] = {}
    for point, spread in zip(found.figure.points, spreads, strict=True):
        if spread is not None:
            lines.setdefault(point.series, []).append((point.label, spread))
    return lines


def _lines(axes: Axes, found: Found, spreads: list[Spread | None]) -> None:
    lines = _series(found, spreads)
    for number, (colour, (name, points)) in enumerate(zip(cycle(COLOURS), lines.items())):
        beside = 1 + BESIDE * number  # so that no interval hides another
        places = [beside * float(label) for label, _ in points]
        axes.plot(places, [100 * s.mean for _, s in points], color=colour, label=name)
        for place, (_, spread) in zip(places, points, strict=True):
            _spread(axes, place, spread, colour)
    axes.set_xscale("log")
    places = sorted({float(point.label) for point in found.figure.points})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set_ylim(-4, 104)
    axes.grid(True)


def _dots(axes: Axes, found: Found, spreads: list[Spread | None]) -> None:
    for place, spread in enumerate(spreads):
        if spread is not None:
            axes.plot([place - 0.25, place + 0.25], [100 * spread.mean] * 2, color=COLOURS[0])
            _spread(axes, place, spread, COLOURS[0])
    labels = [fill(point.label, 12) for point in found.figure.points]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(-4, 104)
    axes.grid(True, axis="y")


def _spread(axes: Axes, place: float, spread: Spread, colour: str) -> None:
    """Every value, and the interval of their mean."""
    values = [100 * value for value in spread.values]
    axes.plot([place] * len(values), values, "o", color=colour, markersize=4, alpha=0.6)
    if spread.low is not None and spread.high is not None:
        axes.plot([place] * 2, [100 * spread.low, 100 * spread.high], color=colour, linewidth=1)


def _heat(axes: Axes, found: Found, spreads: list[Spread | None]) -> None:
    points = found.figure.points
    rows = [*dict.fromkeys(point.series for point in points)]
    columns = [*dict.fromkeys(point.label for point in points)]
    table = [[float("nan")] * len(columns) for _ in rows]
    for point, spread in zip(points, spreads, strict=True):
        if spread is None:
            continue
        row, column = rows.index(point.series), columns.index(point.label)
        table[row][column] = 100 * spread.mean
        values = " ".join(f"{100 * value:.0f}" for value in spread.values)
        ink = "white" if spread.mean < 0.5 else "black"
        axes.annotate(
            f"{100 * spread.mean:.1f}\n{values}", (column, row), ha="center", va="center",
            color=ink, size=8,
        )  # fmt: skip
    axes.imshow(table, vmin=0, vmax=100, cmap="viridis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
