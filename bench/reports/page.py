"""A folder's results as a page with plots, and as the summary in the README."""

import os
import re
from pathlib import Path

from bench.harness.results import Result, is_ours, is_peer
from bench.reports.plots import draw_bars, draw_lines
from bench.reports.scaling import kind, series
from bench.reports.tables import Group, groups, markdown, number, piped, share, versions

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
COLUMNS = ("operation", "case", "ours, ms", "best peer, ms", "peer / ours", "of limit")
REHEARSAL = "**No result from a GPU is committed yet.** These are from a rehearsal and mean little."
LEGEND = (
    "Medians of the main sizes. *peer / ours*: where it is below 1, in bold, the peer is faster. "
    "*Of limit*: our rate over that of a large copy or matrix product in the same process."
)


def write(records: dict[str, dict], folder: Path, readme: Path | None = None) -> Path:
    """`<device>-<date>.md` in `folder`, its plots in a folder of that name, and the README's part.

    Raises ValueError for no results, for those of several devices, or a README without markers.
    """
    timed = {
        name: record
        for name, record in records.items()
        if any(result.timing for result in record["results"])
    }
    devices = {record["machine"]["device"] for record in timed.values()}
    if len(devices) != 1:
        raise ValueError(f"expected results of one device, got {' and '.join(devices) or 'none'}")
    [device] = devices
    date = max(record["machine"]["date"] for record in timed.values())[:10]
    page = folder / f"{_slug(device)}-{date}.md"
    summary = _summary(timed, f"{device}, {date}")
    if readme is not None:  # first, so that nothing is written where it has no markers
        link = Path(os.path.relpath(page, readme.parent)).as_posix()
        _put(readme, f"{summary}\nAll sizes, spreads and plots: [{link}]({link}).\n")
    pictures = folder / page.stem
    plots = "\n".join(
        f"### {operation}\n\n" + "".join(f"![]({page.stem}/{name})\n" for name in names)
        for operation, names in _draw(timed, pictures).items()
    )
    page.write_text(
        f"# {device}, {date}\n\n{summary}\n## Plots\n\n{plots}\n## All\n\n{markdown(records)}"
    )
    return page


def _slug(words: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", words.lower()))


def _put(readme: Path, summary: str) -> None:
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme}: expected one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{summary}{END}{rest.split(END)[1]}")


def _main(records: dict[str, dict]) -> list[Group]:
    """Of each operation, the first case of a kind: entries begin with their main sizes."""
    found = {}
    for group in groups(records):
        found.setdefault(group.operation, {}).setdefault(kind(group.case), group)
    return [group for of_operation in found.values() for group in of_operation.values()]


def _summary(timed: dict[str, dict], title: str) -> str:
    machines = [record["machine"] for record in timed.values()]
    commands = {
        record["machine"]["command"].replace(name, "NAME") for name, record in timed.items()
    }
    source = "; ".join([title, *sorted(set(map(versions, machines)))])
    source += f"; by {' and '.join(f'`{command}`' for command in sorted(commands))}."
    rows = [_row(group, float8) for group in _main(timed) for float8 in (False, True)]
    table = piped([COLUMNS, *filter(None, rows)], words=2)
    rehearsal = [REHEARSAL, ""] if title.startswith("CPU") else []
    return "\n".join([*rehearsal, source, "", LEGEND, "", *table, ""])


def _row(group: Group, float8: bool) -> tuple[str, ...] | None:
    """The fastest of ours and of the peers, float8 beside float8 only."""
    members = [(r, x) for r, x in group.timed if (r.unit or "").endswith("fp8") == float8]
    ours, limits = _fastest([each for each in members if is_ours(each[0].provider)])
    peer, _ = _fastest([each for each in members if is_peer(each[0].provider)])
    if ours is None and peer is None:
        return None
    ratio = peer.timing.milliseconds / ours.timing.milliseconds if ours and peer else None
    shown = number(ratio, ".2f")
    return (
        group.operation + (", float8" if float8 else ""),
        group.case,
        _time(ours, "none"),
        _time(peer, "none"),
        f"**{shown}**" if ratio is not None and ratio < 1 else shown,
        number(ours and share(ours, limits), ".0%"),
    )


def _fastest(members: list[tuple[Result, dict]]) -> tuple[Result | None, dict]:
    return min(members, key=lambda each: each[0].timing.milliseconds, default=(None, {}))


def _time(result: Result | None, otherwise: str) -> str:
    if result is None:
        return otherwise
    return f"{result.timing.milliseconds:.4g} ({result.provider.removeprefix('ours ')})"


def _draw(timed: dict[str, dict], folder: Path) -> dict[str, list[str]]:
    """Of each operation the names of its plots: bars of its main cases, and lines over its sizes.

    What an earlier call drew there is forgotten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    bars, lines = {}, {}
    for group in _main(timed):
        if group.ours is not None:
            bars.setdefault(group.operation, []).append(group)
    for each in series(result for record in timed.values() for result in record["results"]):
        lines.setdefault(each.operation, []).append(each)
    names = {}
    for operation in dict.fromkeys([*bars, *lines]):
        for draw, of_operation, end in ((draw_bars, bars, ""), (draw_lines, lines, "-sizes")):
            if operation in of_operation:
                name = f"{_slug(operation)}{end}.svg"
                draw(of_operation[operation], folder / name)
                names.setdefault(operation, []).append(name)
    return names
