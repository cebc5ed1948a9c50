"""metamorph import: a model folder of official or exported weights."""

import argparse
from pathlib import Path

from metamorph.cli.arguments import check_new, whole

NAME = "import"
SUMMARY = "make a model folder of official or exported weights"
DESCRIPTION = """\
Makes a folder for `metamorph train` and `generate` of weights under the official release's names,
or of what `metamorph export` wrote, and of a SigLIP encoder.

  metamorph import weights runs/official --vision siglip-so400m-patch14-384"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="folder to read")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to write")
    parser.add_argument(
        "--vision", type=Path, required=True, metavar="FOLDER", help="Hugging Face SigLIP folder"
    )
    parser.add_argument(
        "--grid", type=whole(1), default=8, metavar="INT",
        help="an image is grid x grid visual tokens (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--chat-template", default="", metavar="FILE",
        help="chat format of its training: a jinja file, or llama3 (default: its tokenizer's)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from metamorph.model.official_names import import_model

    check_new(arguments.output)
    model, tokenizer = import_model(
        arguments.weights,
        arguments.vision,
        grid=arguments.grid,
        chat_template=arguments.chat_template,
    )
    model.save_pretrained(arguments.output, tokenizer)
    print(f"saved {arguments.output}")
