"""All entries; `python -m bench.runs.entries NAME` runs one here and keeps its results."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch

from bench.harness.limits import measure_limits
from bench.harness.machine import machine
from bench.harness.results import Result, ours_failed, write_record
from bench.ops import attention, cosine, decode, few_rows, mlp, pooling, prefill, text_loss
from bench.reports.tables import text
from bench.runs import (
    cached_decoder,
    data_path,
    diffusion,
    drawing,
    engine,
    generation,
    ladder,
    memory,
    one_pass,
    serving,
    student,
    training_step,
)


class Entry(Protocol):
    """What a benchmark offers: `quick` ones are part of a short run."""

    name: str
    quick: bool
    run: Callable[[torch.device], list[Result]]


def entries(device_type: str) -> dict[str, Entry]:
    """By name, in the order in which to run them."""
    operations = (decode, prefill, few_rows, attention, cosine, mlp, text_loss, pooling)
    whole_runs = (
        training_step, ladder, data_path, generation, engine, serving, diffusion, drawing, one_pass,
        student, cached_decoder, memory,
    )  # fmt: skip
    modules = operations + whole_runs
    return {case.name: case for module in modules for case in module.cases(device_type)}


def record(entry: Entry, device: torch.device) -> dict:
    """The results of one entry with all that a reader needs beside them."""
    begin = time.perf_counter()
    limits = measure_limits(device)
    results = entry.run(device)
    return {
        "machine": machine(device),  # last, so that the clocks are those under load
        "limits": asdict(limits),
        "seconds": round(time.perf_counter() - begin, 1),
        "results": results,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run one entry; 1 if something of ours failed in it."""
    parser = argparse.ArgumentParser(prog="python -m bench.runs.entries", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="an entry; a wrong name lists all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("bench/out"), help="folder of results")
    options = parser.parse_args(arguments)
    known = entries(options.device)
    if options.name not in known:
        parser.error(f"NAME: expected one of {', '.join(known)}, got {options.name!r}")
    torch.manual_seed(0)
    found = record(known[options.name], torch.device(options.device))
    write_record(options.out, options.name, found)
    print(text({options.name: found}))
    return 1 if ours_failed(found["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
