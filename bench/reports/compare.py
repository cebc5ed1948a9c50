"""`python -m bench.reports.compare OLD NEW`: has anything of ours got slower, or stopped working?

Slower means that the intervals of 20 to 80 % lie apart, and that the medians differ by more than a
threshold: the first is noise within a run, the second noise between two runs (bench/README.md).
"""

import argparse
import statistics
import sys
from pathlib import Path

from bench.harness.results import Result, is_ours, read_records
from bench.harness.timing import Timing
from bench.reports.tables import aligned, versions

SAME = (
    "device",
    "torch",
    "triton",
    "cuda",
    "driver_version",
    "clocks.max.sm",
    "power.limit",
)
CEILINGS = {
    "copy": "copy_gigabytes_per_second",
    "matrix product": "matmul_teraflops",
    "float8 product": "float8_teraflops",
}
Records = dict[str, dict]
Line = tuple[str, str, str]  # operation, case, provider


def difference(old: Timing, new: Timing, threshold: float) -> str:
    """One of "slower", "faster" and "alike"; a time taken once has no spread to judge it by."""
    if 1 in (len(old.samples), len(new.samples)):
        return "alike"
    ratio = new.milliseconds / old.milliseconds
    if new.low > old.high and ratio > 1 + threshold:
        return "slower"
    if new.high < old.low and ratio < 1 / (1 + threshold):
        return "faster"
    return "alike"


def other_machine(old: Records, new: Records) -> list[str]:
    """What differs between the machines of two runs, apart from the code."""
    found = []
    for key in SAME:
        values = [
            {record["machine"].get(key) for record in records.values()} for records in (old, new)
        ]
        if values[0] != values[1]:
            shown = [" and ".join(sorted(map(str, each))) for each in values]
            found.append(f"{key} {shown[0]}, then {shown[1]}")
    return found


def compare(old: Records, new: Records, threshold: float) -> dict[str, list[tuple[Line, str]]]:
    """Lines and what there is to say of them, by what happened to them."""
    before, after = _lines(old), _lines(new)
    found = {name: [] for name in ("slower", "failed", "missing", "faster", "new", "alike")}
    for line in dict.fromkeys([*before, *after]):
        was, now = before.get(line), after.get(line)
        if now is not None and now.status == "failed":
            found["failed"].append((line, now.reason))
        elif was is not None and was.status == "ok" and (now is None or now.status == "absent"):
            found["missing"].append((line, now.reason if now else "not measured"))
        elif now is not None and now.timing:
            if was is None or not was.timing:
                found["new"].append((line, f"{now.timing.milliseconds:.4g} ms"))
            else:
                verdict = difference(was.timing, now.timing, threshold)
                found[verdict].append((line, _change(was.timing, now.timing)))
    return found


def ceilings(old: Records, new: Records) -> str:
    """New over old, the medians of all entries: what the machine itself became."""
    shown = []
    for words, name in CEILINGS.items():
        medians = []
        for records in (old, new):
            limits = [record.get("limits") or {} for record in records.values()]
            values = [limit[name] for limit in limits if limit.get(name)]
            medians.append(statistics.median(values) if values else None)
        if None not in medians:
            shown.append(f"{words} x{medians[1] / medians[0]:.3f}")
    return ", ".join(shown) or "not measured"


def _lines(records: Records) -> dict[Line, Result]:
    """A line may have a remark beside its time: the time counts."""
    lines = {}
    for record in records.values():
        for result in record["results"]:
            line = result.operation, result.case, result.provider
            if result.timing or line not in lines:
                lines[line] = result
    return lines


def _change(old: Timing, new: Timing) -> str:
    ratio = new.milliseconds / old.milliseconds
    return f"{old.milliseconds:.4g} to {new.milliseconds:.4g} ms, x{ratio:.3f}"


def _read(path: Path) -> Records:
    records = read_records(path)
    if not records:
        raise ValueError(f"{path}: no results there")
    return records


def main(arguments: list[str] | None = None) -> int:
    """1 if anything of ours got slower or fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.reports.compare", description=__doc__)
    parser.add_argument("old", type=Path, help="a folder of results, or its results.json")
    parser.add_argument("new", type=Path, help="the same of the other code")
    parser.add_argument("--threshold", type=float, default=5, metavar="PERCENT", help="default 5")
    parser.add_argument("--force", action="store_true", help="compare different machines as well")
    options = parser.parse_args(arguments)
    try:
        old, new = _read(options.old), _read(options.new)
    except ValueError as error:
        parser.error(str(error))
    others = other_machine(old, new)
    if others and not options.force:
        parser.error(f"different machines: {'; '.join(others)}; --force compares them")
    for word, records in (("old", old), ("new", new)):
        machines = {f"{r['machine']['device']}; {versions(r['machine'])}" for r in records.values()}
        print("\n".join(f"{word}: {machine}" for machine in sorted(machines)))
    print(f"ceilings, new / old: {ceilings(old, new)}")
    found = compare(old, new, options.threshold / 100)
    alike = found.pop("alike")
    for name, lines in found.items():
        if lines:
            print(f"\n{name}: {len(lines)}")
            rows = [
                (f"{line[2]}: {', '.join(filter(None, line[:2]))}", words) for line, words in lines
            ]
            print("\n".join(aligned(rows)))
    print(f"\nalike within {options.threshold:g} % or their spread: {len(alike)}")
    bad = [line for name in ("slower", "failed") for line, _ in found[name] if is_ours(line[2])]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
