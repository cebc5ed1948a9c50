"""metamorph quickstart: the whole job at toy size, or on a pretrained language model."""

import argparse
import sys
from pathlib import Path

from metamorph.cli.arguments import whole
from metamorph.config.keys import MAX_SEED
from metamorph.errors import UserError

NAME = "quickstart"
SUMMARY = "train and try a small model on this machine"
DESCRIPTION = """\
Trains a small MetaMorph on the CPU in minutes, from a random language model: it learns to answer
questions about pictures and to draw captions, and is scored on combinations that it never saw.

  metamorph quickstart
  metamorph quickstart --output runs/again --seed 1

Writes OUTPUT/model (for `metamorph generate`), report.json, samples.png and report.html.

With a pretrained language model the same is asked in ordinary English. SmolLM2-135M-Instruct comes
by pip, 93 MB; what it was taught comes with this package, and is taught again with --train, within
two hours on two cores. A training that was stopped goes on with the same command.

  metamorph quickstart --language smollm2
  metamorph quickstart --language smollm2 --train"""
PRETRAINED = "smollm2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="run folder (default: runs/quickstart, runs/smollm2 or runs/smollm2-training)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole(0, MAX_SEED), metavar="INT", help="(default: 0)")
    parser.add_argument(
        "--language", choices=(PRETRAINED,), help="begin with this pretrained language model"
    )
    parser.add_argument(
        "--train", action="store_true", help="teach the pretrained language model here"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.language is not None:
        return _run_pretrained(arguments)
    if arguments.train:
        raise UserError("--train goes with --language; without one, everything is trained anyway")
    from metamorph.quickstart.run import missed_bars, quickstart, summary

    output = arguments.output or Path("runs/quickstart")
    report = quickstart(output, arguments.seed or 0)
    print(summary(report, output))
    missed = missed_bars(report)
    for line in missed:
        print(f"metamorph: the model did not learn enough: {line}", file=sys.stderr)
    return 1 if missed else 0


def _run_pretrained(arguments: argparse.Namespace) -> int:
    import torch

    from metamorph.libraries import require

    cpu = torch.device("cpu")
    require(f"--language {arguments.language}", ["gguf"], cpu)
    if not arguments.train:
        if arguments.seed is not None:
            raise UserError("--seed goes with --train; what comes with this package has seed 0")
        from metamorph.quickstart.pretrained.run import try_smollm2

        try_smollm2(arguments.output or Path("runs/smollm2"), arguments.command)
        return 0
    require("--train", ["peft"], cpu)
    from metamorph.quickstart.pretrained.run import train_and_try_smollm2

    output = arguments.output or Path("runs/smollm2-training")
    train_and_try_smollm2(output, arguments.command, arguments.seed or 0)
    return 0
