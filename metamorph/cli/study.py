"""metamorph study: grids of small trainings that ask what the method's paper asks."""

import argparse
from pathlib import Path

from metamorph.cli.arguments import whole
from metamorph.study.verdicts import MOST_SEEDS

NAME = "study"
SUMMARY = "train grids of small models and judge claims over seeds"
DESCRIPTION = """\
Trains the toy many times, with other amounts of each kind of data or other losses, and several
seeds each; scores answers and drawings on combinations that training never showed; and judges, by
a rule that was there before, whether each claim is seen, not seen, or unclear at this scale.

  metamorph study --list
  metamorph study --figure f1,f5,f3 --seeds 3 --jobs 2 --output runs/study

Writes records/ (a file for each finished training), study.json, tables.md and a PNG for each figure
to --output. The same command goes on where it was stopped; other figures or more seeds add to what
the folder has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figure", metavar="NAMES",
        help="which figures, separated by commas (default: all that --list shows)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/study"), metavar="FOLDER")
    parser.add_argument(
        "--seeds", type=whole(1, MOST_SEEDS), metavar="INT",
        help="trainings of each cell (default: 3; with --smoke 1); verdicts need 3",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(1), default=1, metavar="INT",
        help="trainings side by side, a core each (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true",
        help="amounts of a few samples: whether everything works, and nothing about the method",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true",
        help="show figures and trainings, what is done of them and how long the rest takes",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from metamorph.study.figures import figures
    from metamorph.study.plan import Plan
    from metamorph.study.scale import FULL, SMOKE

    scale = SMOKE if arguments.smoke else FULL
    names = [*figures(scale)] if arguments.figure is None else arguments.figure.split(",")
    seeds = arguments.seeds or (1 if arguments.smoke else 3)
    plan = Plan.of(names, seeds, scale)
    if arguments.list:
        from metamorph.study.listing import listing

        print(listing(arguments.output, plan, arguments.jobs))
        return
    from metamorph.study.run import study, summary

    records = study(arguments.output, plan, arguments.jobs)
    print(summary(arguments.output, records))
