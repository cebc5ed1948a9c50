"""Plots of results as SVG: bars of time beside ours, and lines of time against size."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from bench.harness.results import is_ours, is_peer
from bench.reports.scaling import Series
from bench.reports.tables import Group, share

OURS, PEER, LIMIT = "#1b6ca8", "#a9b4bd", "#ffffff"
COLOURS = ("#e07b39", "#4c9f70", "#8a5fb0", "#c94f5d", "#7a6a53", "#d6a419", "#3d9ea8", "#555555")
DASHES, MARKERS = ("-", "--", ":", "-."), "osD^v<>Pp*hX"
LONGEST_BAR = 5  # times ours; beyond, the number alone says it
PANELS_A_ROW = 3  # and names of the legend
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metamorph",  # the same drawing is the same file
    "font.sans-serif": ["DejaVu Sans"],  # each text names the whole list
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "lines.markersize": 4,
}


def draw_bars(groups: Sequence[Group], path: Path) -> None:
    """One panel a case: each provider's time over ours, its 20-80 % and its share of the limit."""
    bars = [len(group.timed) for group in groups]
    with rc_context(STYLE):
        size = 8, sum(0.6 + 0.22 * count for count in bars)
        figure = Figure(size, layout="constrained")
        panels = figure.subplots(
            len(groups), squeeze=False, sharex=True, height_ratios=[2 + count for count in bars]
        )
        for axes, group in zip(panels[:, 0], groups, strict=True):
            _bars(axes, group)
        axes.set_xlim(0, 1.3 * max(axes.dataLim.x1 for axes in panels[:, 0]))  # and the words
        axes.set_xlabel("time / ours")
        _save(figure, path)


def draw_lines(series: Sequence[Series], path: Path) -> None:
    """One panel a series, both axes logarithmic; a provider looks the same in all of them."""
    looks = _looks(dict.fromkeys(name for each in series for name in each.lines))
    columns = min(PANELS_A_ROW, len(series))
    rows, legend_rows = (-(-count // PANELS_A_ROW) for count in (len(series), len(looks)))
    with rc_context(STYLE):
        size = max(7, 3.2 * columns), 2.7 * rows + 0.2 * legend_rows
        figure = Figure(size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for index, axes in enumerate(panels):
            if index < len(series):
                _lines(axes, series[index], looks)
            else:
                axes.remove()
        figure.legend(
            handles=[Line2D([], [], label=name, **look) for name, look in looks.items()],
            loc="outside lower center",
            ncols=PANELS_A_ROW,
            frameon=False,
        )
        _save(figure, path)


def _bars(axes: Axes, group: Group) -> None:
    fastest_last = sorted(group.timed, key=lambda member: -member[0].timing.milliseconds)
    unit = group.ours.milliseconds
    for place, (result, limits) in enumerate(fastest_last):
        timing = result.timing
        ratio = timing.milliseconds / unit
        colour = OURS if is_ours(result.provider) else PEER if is_peer(result.provider) else LIMIT
        length = min(ratio, LONGEST_BAR)
        axes.barh(place, length, color=colour, edgecolor="#6b7780", linewidth=0.6)
        if ratio <= LONGEST_BAR:
            spread = [[ratio - timing.low / unit], [timing.high / unit - ratio]]
            axes.errorbar(ratio, place, xerr=spread, color="black", linewidth=1, capsize=2)
        part = share(result, limits)
        words = f"{ratio:.2f}" + (f", {part:.0%} of limit" if part else "")
        end = max(length, min(timing.high / unit, LONGEST_BAR))
        axes.annotate(words, (end, place), (4, 0), textcoords="offset points", va="center", size=8)
    axes.axvline(1, color=OURS, linewidth=1)
    axes.set_yticks(range(len(fastest_last)), [result.provider for result, _ in fastest_last])
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{group.case}; ours {unit:.4g} ms", loc="left", size=9)


def _lines(axes: Axes, series: Series, looks: dict[str, dict]) -> None:
    for name, points in series.lines.items():
        sizes = [size for size, _ in points]
        times = [timing.milliseconds for _, timing in points]
        spread = [
            [timing.milliseconds - timing.low for _, timing in points],
            [timing.high - timing.milliseconds for _, timing in points],
        ]
        axes.errorbar(sizes, times, spread, label=name, **looks[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({size for points in series.lines.values() for size, _ in points})
    axes.set_xticks(sizes, sizes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(series.axis)
    axes.set_ylabel("ms")
    axes.set_title(fill(series.case, 40), loc="left", size=8)


def _looks(names: Iterable[str]) -> dict[str, dict]:
    """Ours thick and blue, peers in colours; no two of an operation are alike."""
    dashes, colours, markers = cycle(DASHES), cycle(COLOURS), cycle(MARKERS)
    looks = {}
    for name in names:
        looks[name] = {"marker": next(markers)}
        if is_ours(name):
            looks[name] |= {"color": OURS, "linewidth": 2, "linestyle": next(dashes)}
        else:
            looks[name] |= {"color": next(colours), "linewidth": 1}
    return looks


def _save(figure: Figure, path: Path) -> None:
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(path, format="svg", metadata=nothing)
