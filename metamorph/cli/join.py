"""metamorph join: a model and a decoder as one folder."""

import argparse
from pathlib import Path

from metamorph.cli.arguments import check_new

NAME = "join"
SUMMARY = "put a model and a decoder into one folder"
DESCRIPTION = """\
Language model and decoder are trained apart, on features of the same encoder. This makes a folder
of both, with which `metamorph generate` draws. Its weights are hard links where the disk allows it,
so that they take no more room.

  metamorph join runs/mine/model --decoder runs/decoder/decoder --output runs/drawing
  metamorph generate "Generate an image of a puppy." --model runs/drawing"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    parser.add_argument(
        "--decoder", type=Path, required=True, metavar="FOLDER",
        help="decoder/ of a run of stage decoder",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder to write"
    )


def run(arguments: argparse.Namespace) -> None:
    from metamorph.generation.joining import join

    check_new(arguments.output)
    join(arguments.model, arguments.decoder, arguments.output)
    print(f"saved {arguments.output}")
