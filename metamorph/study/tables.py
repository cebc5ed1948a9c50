"""Figures as tables in Markdown."""

from metamorph.study.found import Found
from metamorph.study.verdicts import Difference, Judged, Spread


def tables(found: Found) -> str:
    """A figure in Markdown: scores at each point, then claims with their verdicts."""
    figure = found.figure
    lines = [
        f"## {figure.name.upper()}. {figure.title}",
        "",
        f"The paper: {figure.paper}",
        "",
        f"{found.done} of {found.trainings} trainings done. Means over seeds in per cent, with the "
        "95 % t interval of the mean and the values.",
        "",
    ]
    lines += _table(
        ["", figure.axis, *figure.scores],
        [
            [point.series, point.label]
            + [_percent(spreads[place]) for spreads in found.spreads.values()]
            for place, point in enumerate(figure.points)
        ],
    )
    lines += _table(
        ["claim", "of", "found", "verdict"],
        [[each.claim.claim, *_quantity(each), each.verdict] for each in found.judged],
    )
    return "\n".join(lines)


def _quantity(judged: Judged) -> tuple[str, str]:
    """What a claim is about, and how large that is."""
    claim = judged.claim
    if isinstance(claim, Difference):
        return f"difference of {claim.score}", _percent(judged.spread)
    return f"correlation of {claim.score} and {claim.other}", _cell(judged.spread, 1, 2)


def _percent(spread: Spread | None) -> str:
    return _cell(spread, 100, 1)


def _cell(spread: Spread | None, scale: int, digits: int) -> str:
    if spread is None:
        return "no value yet"
    values = ", ".join(f"{scale * value:.{digits}f}" for value in spread.values)
    if spread.low is None or spread.high is None:
        return values
    ends = f"{scale * spread.low:.{digits}f} to {scale * spread.high:.{digits}f}"
    return f"{scale * spread.mean:.{digits}f} ({ends}; {values})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]
