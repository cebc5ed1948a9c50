"""Tables of results, as text and as Markdown; `python -m bench.report [FOLDER]` prints them."""

import sys
from pathlib import Path

from bench.results import Result, read_records
from bench.timing import Timing

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
LIMIT_OF = {"TFLOP/s": "matmul_teraflops", "GB/s": "copy_gigabytes_per_second"}
Group = tuple[str, list[list[str]], list[str]]  # title, rows of cells, remarks below them


def text(records: dict[str, dict]) -> str:
    """Tables for a terminal: what ran where and what is absent, then each operation and case."""
    lines = [*_heads(records), *_absent(records)]
    for title, rows, remarks in _groups(records):
        lines += ["", title]
        if rows:
            widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
            lines += [_line(row, widths) for row in (COLUMNS, *rows)]
        lines += [f"  {remark}" for remark in remarks]
    return "\n".join(lines)


def markdown(records: dict[str, dict]) -> str:
    """The same for a page."""
    lines = [f"- {line}" for line in (*_heads(records), *_absent(records))]
    for title, rows, remarks in _groups(records):
        lines += ["", f"**{title}**", ""]
        if rows:
            table = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *rows]
            lines += [f"| {' | '.join(row)} |" for row in table] + [""]
        lines += [f"- {remark}" for remark in remarks]
    return "\n".join(lines) + "\n"


def _heads(records: dict[str, dict]) -> list[str]:
    """One line for each device and code, with the spread of its measured ceilings."""
    limits = {}
    for record in records.values():
        where = record["machine"]
        head = "{device}; torch {torch}, Triton {triton}; code {code}, commit {commit}"
        limits.setdefault(head.format(**where), []).append(record.get("limits"))
    lines = []
    for head, measured in limits.items():
        lines.append(head)
        known = [limit for limit in measured if limit is not None]
        if known and head.startswith("CPU"):
            lines.append("A rehearsal: tiny sizes in float32 on a CPU. The times mean little.")
        if known:
            copies = [limit["copy_gigabytes_per_second"] for limit in known]
            products = [limit["matmul_teraflops"] for limit in known]
            lines.append(
                f"measured ceilings: copy {min(copies):.0f} to {max(copies):.0f} GB/s, "
                f"matrix product {min(products):.3g} to {max(products):.3g} TFLOP/s; "
                f"nominal {known[0]['nominal_teraflops'] or 'unknown'} TFLOP/s"
            )
    return lines


def _absent(records: dict[str, dict]) -> list[str]:
    """Each reason once, with who is absent for it."""
    found = {}
    for record in records.values():
        for result in record["results"]:
            if result.status == "absent":
                found.setdefault(result.reason, {})[result.provider] = None
    return [f"absent, {reason}: {', '.join(providers)}" for reason, providers in found.items()]


def _groups(records: dict[str, dict]) -> list[Group]:
    """What was timed first, then what has words only."""
    found = {}
    for record in records.values():
        for result in record["results"]:
            if result.status != "absent":
                key = (result.operation, result.case)
                found.setdefault(key, []).append((result, record.get("limits")))
    groups = [_group(*key, members) for key, members in found.items()]
    return sorted(groups, key=lambda group: not group[1])


def _group(operation: str, case: str, members: list[tuple[Result, dict | None]]) -> Group:
    ours = next((r.timing for r, _ in members if r.timing and r.provider.startswith("ours")), None)
    rows = [_cells(result, limits, ours) for result, limits in members if result.timing]
    remarks = [f"{r.provider}: {r.status}, {r.reason}" for r, _ in members if not r.timing]
    return ", ".join(filter(None, (operation, case))), rows, remarks


def _cells(result: Result, limits: dict, ours: Timing | None) -> list[str]:
    timing = result.timing
    nominal = limits["nominal_teraflops"] if result.unit == "TFLOP/s" else None
    limit = limits[LIMIT_OF[result.unit]] if result.unit else None
    return [
        result.provider,
        f"{timing.milliseconds:.4g}",
        f"{timing.low:.4g}-{timing.high:.4g}",
        _number(timing.host_milliseconds, ".3g"),
        f"{result.rate:.4g} {result.unit}" if result.unit else "",
        _number(limit and result.rate / limit, ".1%"),
        _number(nominal and result.rate / nominal, ".1%"),
        _number(timing.peak_gigabytes, ".3f"),
        _number(ours and timing.milliseconds / ours.milliseconds, ".2f"),
        f"{result.error:.1e}",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = (
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(["", first, *others]).rstrip()


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("bench/out")
    print(text(read_records(folder)))


if __name__ == "__main__":
    main()
