"""metamorph export: a trained model for other programs."""

import argparse
from pathlib import Path
from typing import get_args

from metamorph.cli.arguments import check_new
from metamorph.config.keys import ExportFormat

NAME = "export"
SUMMARY = "write a trained model for other programs"
DESCRIPTION = """\
Writes weights (safetensors), config.json and generation_config.json of the language model, and the
tokenizer with the chat template that was trained. What loads a Llama, a Mistral or a Qwen finds one
there; projector and vision head lie beside it.

  metamorph export runs/mine/model exported
  metamorph export runs/mine/model exported --format official"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write")
    parser.add_argument(
        "--format", choices=get_args(ExportFormat), default="hf",
        help="names of projector and vision head: ours, or the official release's (default: hf)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from metamorph.config import ModelConfig
    from metamorph.model.official_names import export_model
    from metamorph.model.tokenizer import open_tokenizer
    from metamorph.model.unified import MetaMorph

    model = MetaMorph.from_pretrained(arguments.model)
    tokenizer, _ = open_tokenizer(ModelConfig(folder=str(arguments.model)))
    check_new(arguments.output)
    export_model(model, arguments.output, tokenizer, arguments.format)
    print(f"saved {arguments.output}")
