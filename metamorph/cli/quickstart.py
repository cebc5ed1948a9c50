"""metamorph quickstart: the whole job at toy size."""

import argparse
import sys
from pathlib import Path

from metamorph.cli.arguments import whole
from metamorph.config.keys import MAX_SEED

NAME = "quickstart"
SUMMARY = "train and try a small model on this machine"
DESCRIPTION = """\
Trains a small MetaMorph on the CPU in minutes, from a random language model: it learns to answer
questions about pictures and to draw captions, and is scored on combinations that it never saw.

  metamorph quickstart
  metamorph quickstart --output runs/again --seed 1

Writes OUTPUT/model (for `metamorph generate`), report.json, samples.png and report.html."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), metavar="FOLDER")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, metavar="INT")


def run(arguments: argparse.Namespace) -> int:
    from metamorph.quickstart.run import missed_bars, quickstart, summary

    report = quickstart(arguments.output, arguments.seed)
    print(summary(report, arguments.output))
    missed = missed_bars(report)
    for line in missed:
        print(f"metamorph: the model did not learn enough: {line}", file=sys.stderr)
    return 1 if missed else 0
