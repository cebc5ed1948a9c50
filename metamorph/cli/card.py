"""metamorph card: the README.md of a model for the Hugging Face Hub."""

import argparse
from pathlib import Path

NAME = "card"
SUMMARY = "write the model card of a folder"
DESCRIPTION = """\
Writes README.md into a model folder, as the Hugging Face Hub reads it: licence, how to open the
model, what it was trained on, and a table of what metamorph evaluate measured. Nothing is sent.

  metamorph evaluate --model runs/mine/model --output evaluation
  metamorph card runs/mine/model --name me/mine --license apache-2.0 \\
    --data "Toy scenes, which metamorph makes." --evaluation evaluation/evaluation.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    parser.add_argument("--name", required=True, metavar="USER/NAME", help="of it on the Hub")
    parser.add_argument(
        "--license", required=True, metavar="ID", help="of its weights, as the Hub has it"
    )
    parser.add_argument(
        "--data", required=True, metavar="TEXT", help="what it was trained on, in Markdown"
    )
    parser.add_argument(
        "--base", action="append", default=[], metavar="USER/NAME",
        help="model on the Hub that it was made of; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], metavar="FILE",
        help="evaluation.json of this model; may be given again",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from metamorph.evaluation.model_card import write_model_card

    path = write_model_card(
        arguments.model,
        arguments.name,
        arguments.license,
        arguments.data,
        bases=arguments.base,
        reports=arguments.evaluation,
    )
    print(f"saved {path}")
