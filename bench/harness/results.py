"""Results as JSON: one file a folder, one record an entry, never a time that was not verified."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.harness.timing import Candidate, Timing

FILE = "results.json"


@dataclass(frozen=True)
class Result:
    """One line of a table.

    `case` is a sentence with its sizes, each before what it counts: "spans, 8192 tokens, ...".
    `status` is "ok", "failed" or "absent", the latter two with a reason. `rate` is useful work a
    second, in `unit`: "TFLOP/s", "TFLOP/s fp8" or "GB/s". `error` and `bound` are those of the
    verification.
    """

    operation: str
    case: str
    provider: str
    status: str
    reason: str = ""
    timing: Timing | None = None
    rate: float | None = None
    unit: str | None = None
    error: float | None = None
    bound: float | None = None

    def __post_init__(self):
        verified = None not in (self.error, self.bound) and self.error <= self.bound
        if self.timing is not None and not verified:
            raise ValueError(f"{self.provider}: a time without a verified result")


def timed(
    operation: str,
    case: str,
    provider: str,
    candidate: Candidate,
    timing: Timing,
    work: float | None = None,
    unit: str | None = None,
) -> Result:
    """The result of a candidate; `work` is in FLOPs for "TFLOP/s" and in bytes for "GB/s"."""
    rate = None
    if work is not None:
        rate = work / timing.milliseconds / {"TFLOP/s": 1e9, "GB/s": 1e6}[unit]
        unit += " fp8" if candidate.float8 and unit == "TFLOP/s" else ""
    return Result(
        operation,
        case,
        provider,
        "ok",
        timing=timing,
        rate=rate,
        unit=unit,
        error=candidate.error,
        bound=candidate.bound,
    )


def failed(operation: str, case: str, provider: str, error: BaseException | str) -> Result:
    """A result that could not be had, and why, in one line."""
    if isinstance(error, BaseException):
        lines = str(error).strip().splitlines() or [""]
        error = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    return Result(operation, case, provider, "failed", reason=error[:300])


def is_ours(provider: str) -> bool:
    return provider.startswith("ours")


def is_peer(provider: str) -> bool:
    """Neither ours nor a lower limit: "the products, no bias or GELU"."""
    return not provider.startswith(("ours", "the "))


def ours_failed(results: list[Result]) -> bool:
    """Did anything of ours fail? What fails in a peer is for its table, and no fault of a run."""
    return any(result.status == "failed" and is_ours(result.provider) for result in results)


def read_records(path: Path) -> dict[str, dict]:
    """Entry name to record: `machine`, `limits`, and `results` as `Result`; of a folder or a file.

    Raises ValueError for what another version of this package wrote and this one cannot read.
    """
    path = path if path.suffix == ".json" else path / FILE
    if not path.exists():
        return {}
    records = json.loads(path.read_text())
    for name, record in records.items():
        try:
            record["results"] = [_from_json(result) for result in record["results"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: {name} is from another version of bench; measure it again"
            ) from error
    return records


def write_record(folder: Path, name: str, record: dict) -> None:
    """Add or replace one entry; a reader sees the old file or the new one, nothing between."""
    records = read_records(folder) | {name: record}
    values = {
        key: record | {"results": [asdict(result) for result in record["results"]]}
        for key, record in records.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{FILE}.new"
    draft.write_text(json.dumps(values, indent=1))
    os.replace(draft, folder / FILE)


def _from_json(value: dict) -> Result:
    timing = value["timing"]
    return Result(**value | {"timing": timing and Timing(**timing)})
