"""Results as tables: for a terminal, and as Markdown for a page."""

from dataclasses import dataclass, field

from bench.harness.results import Result, is_ours
from bench.harness.timing import Timing
from bench.reports.scaling import fit, series

COLUMNS = (
    "provider",
    "ms",
    "20-80 %",
    "host ms",
    "rate",
    "of measured",
    "of nominal",
    "peak GB",
    "/ ours",
    "error",
)
SCALING_COLUMNS = ("provider", "sizes", "exponent", "worst deviation")
# What bounds a rate: names of `Limits`, measured and the vendor's.
LIMITS_OF = {
    "TFLOP/s": ("matmul_teraflops", "nominal_teraflops"),
    "TFLOP/s fp8": ("float8_teraflops", "nominal_float8_teraflops"),
    "GB/s": ("copy_gigabytes_per_second", None),
}
VERSIONS = {
    "driver_version": "driver",
    "cuda": "CUDA",
    "torch": "torch",
    "triton": "Triton",
    "python": "Python",
    "peers": "peers",
    "code": "code",
    "commit": "commit",
}
STATE = {
    "clocks.sm": "SM {}",
    "clocks.mem": "memory {}",
    "temperature.gpu": "{} degrees C",
    "power.draw": "{}",
}


@dataclass
class Group:
    """All lines of one operation and case, each with the ceilings of its process."""

    operation: str
    case: str
    members: list[tuple[Result, dict]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # command, commit and time of each record

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.operation, self.case)))

    @property
    def timed(self) -> list[tuple[Result, dict]]:
        return [member for member in self.members if member[0].timing]

    @property
    def ours(self) -> Timing | None:
        """What the others are compared with: the first of ours."""
        return next((r.timing for r, _ in self.timed if is_ours(r.provider)), None)


def text(records: dict[str, dict]) -> str:
    """Tables for a terminal: what ran where and what is absent, then each operation and case."""
    lines = [*heads(records), *_absent(records)]
    for group in groups(records):
        lines += ["", group.title, *aligned(_rows(group))]
        lines += [f"  {remark}" for remark in _remarks(group)]
    for title, rows in _scaling(records):
        lines += ["", title, *aligned(rows)]
    return "\n".join(lines)


def markdown(records: dict[str, dict]) -> str:
    """The same for a page, and from where each figure is."""
    lines = [f"- {line}" for line in (*heads(records), *_absent(records))]
    for group in groups(records):
        lines += ["", f"**{group.title}**", "", *piped(_rows(group)), ""]
        lines += [f"- {remark}" for remark in (*_remarks(group), *group.sources)]
    for title, rows in _scaling(records):
        lines += ["", f"**{title}**", "", *piped(rows)]
    return "\n".join(lines) + "\n"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines of a terminal; the first column is words, the others are figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        figures = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join(["", first.ljust(widths[0]), *figures]).rstrip())
    return lines


def piped(rows: list[tuple[str, ...]], words: int = 1) -> list[str]:
    """Rows of cells, the first of which name the columns, as Markdown."""
    if not rows:
        return []
    rule = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]


def groups(records: dict[str, dict]) -> list[Group]:
    """What was timed first, then what has words only."""
    found = {}
    for record in records.values():
        for result in record["results"]:
            if result.status != "absent":
                key = (result.operation, result.case)
                group = found.setdefault(key, Group(*key))
                group.members.append((result, record.get("limits") or {}))
                source = _source(record["machine"])
                if source not in group.sources:
                    group.sources.append(source)
    return sorted(found.values(), key=lambda group: not group.timed)


def share(result: Result, limits: dict, nominal: bool = False) -> float | None:
    """Of its measured or nominal ceiling, or None where there is none."""
    if result.unit is None:
        return None
    limit = limits.get(LIMITS_OF[result.unit][nominal])
    return limit and result.rate / limit


def versions(machine: dict[str, str]) -> str:
    return ", ".join(f"{word} {machine[key]}" for key, word in VERSIONS.items() if key in machine)


def heads(records: dict[str, dict]) -> list[str]:
    """One line for each device and code, with the spread of its measured ceilings."""
    limits = {}
    for record in records.values():
        head = f"{record['machine']['device']}; {versions(record['machine'])}"
        limits.setdefault(head, []).append(record.get("limits"))
    lines = []
    for head, measured in limits.items():
        lines.append(head)
        known = [limit for limit in measured if limit is not None]
        if known and head.startswith("CPU"):
            lines.append("A rehearsal: tiny sizes in float32 on a CPU. The times mean little.")
        if known:
            lines.append(_ceilings(known))
    return lines


def _ceilings(known: list[dict]) -> str:
    def spread(name: str) -> str:
        values = [limit[name] for limit in known if limit.get(name)]
        return f"{min(values):.4g} to {max(values):.4g}" if values else ""

    float8 = spread("float8_teraflops")
    if float8:
        float8 += " TFLOP/s"
    else:
        float8 = f"none, {known[0].get('float8_absence') or 'not measured'}"
    nominal = [known[0].get(name) for name in ("nominal_teraflops", "nominal_float8_teraflops")]
    nominal = [f"{value:g} TFLOP/s" if value else "unknown" for value in nominal]
    return (
        f"measured ceilings: copy {spread('copy_gigabytes_per_second')} GB/s, matrix product "
        f"{spread('matmul_teraflops')} TFLOP/s (nominal {nominal[0]}), in float8 {float8} "
        f"(nominal {nominal[1]})"
    )


def _source(machine: dict[str, str]) -> str:
    """What a reader needs to get a figure again, and the state of the device just after."""
    command = [f"`{machine['command']}`"] if "command" in machine else []
    when = [f"commit {machine['commit']}", *filter(None, [machine.get("date")])]
    state = [form.format(machine[key]) for key, form in STATE.items() if key in machine]
    return ", ".join(command + when + state)


def _absent(records: dict[str, dict]) -> list[str]:
    """Each reason once, with who is absent for it."""
    found = {}
    for record in records.values():
        for result in record["results"]:
            if result.status == "absent":
                found.setdefault(result.reason, {})[result.provider] = None
    return [f"absent, {reason}: {', '.join(providers)}" for reason, providers in found.items()]


def _rows(group: Group) -> list[tuple[str, ...]]:
    rows = [_cells(result, limits, group.ours) for result, limits in group.timed]
    return [COLUMNS, *rows] if rows else []


def _remarks(group: Group) -> list[str]:
    return [f"{r.provider}: {r.status}, {r.reason}" for r, _ in group.members if not r.timing]


def _cells(result: Result, limits: dict, ours: Timing | None) -> tuple[str, ...]:
    timing = result.timing
    return (
        result.provider,
        f"{timing.milliseconds:.4g}",
        f"{timing.low:.4g}-{timing.high:.4g}",
        number(timing.host_milliseconds, ".3g"),
        f"{result.rate:.4g} {result.unit}" if result.unit else "",
        number(share(result, limits), ".1%"),
        number(share(result, limits, nominal=True), ".1%"),
        number(timing.peak_gigabytes, ".3f"),
        number(ours and timing.milliseconds / ours.milliseconds, ".2f"),
        f"{result.error:.1e}",
    )


def _scaling(records: dict[str, dict]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows of each operation that has three sizes or more."""
    tables = []
    for each in series(result for record in records.values() for result in record["results"]):
        rows = []
        for provider, points in each.lines.items():
            if (found := fit(points)) is not None:
                sizes = f"{points[0][0]} to {points[-1][0]}"
                rows.append((provider, sizes, f"{found.exponent:.2f}", f"{found.deviation:.0%}"))
        if rows:
            title = f"time against {each.axis}: {each.operation}, {each.case}"
            tables.append((title, [SCALING_COLUMNS, *rows]))
    return tables


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
