"""metamorph init: a commented run file for one's own data and models."""

import argparse
import sys
from functools import partial

from metamorph.cli.arguments import number, whole
from metamorph.config.keys import Stage
from metamorph.errors import UserError

NAME = "init"
SUMMARY = "write a run file for your data, after a few questions"
DESCRIPTION = """\
Looks at your data as training would open them, and at your models, and writes a run file with a
line about each key: what it is and why it has that value. What no option says is asked in a
terminal. What is written has passed the rules of `metamorph train --dry-run`; if anything is wrong
nothing is written, and nothing is replaced without --overwrite.

  metamorph init my-run
  metamorph init my-run --data data.jsonl --language models/Llama-3.1-8B-Instruct \\
      --vision models/siglip-so400m-patch14-384 --stage align --gpus 8 --memory 80
  metamorph init second-stage --data data.jsonl --model runs/my-run/model --gpus 8
  metamorph init my-decoder --stage decoder --data images --vision models/siglip-so400m-patch14-384

Two stages make a model: align, then instruct, which goes on from what align wrote (--model). A
decoder, which turns what the model predicts into pixels, is trained apart: docs/training.md."""
STAGES: tuple[Stage, ...] = ("align", "instruct", "decoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="run file to write; my-run is my-run.yaml")
    parser.add_argument("--stage", choices=STAGES, help="what to train (default: instruct)")
    parser.add_argument(
        "--data", metavar="PATH",
        help="your samples: a .jsonl, .json, .tar or .parquet file, a folder or pattern of these; "
        "a data set of Hugging Face that save_to_disk wrote; a mixture file (.yaml); for a "
        "decoder, a folder of pictures; or toy_scenes",
    )  # fmt: skip
    parser.add_argument(
        "--image-root", default="", metavar="FOLDER",
        help="where the names in JSON records start from (default: looked for beside the file)",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="MetaMorph folder to go on from, in place of the two below",
    )
    parser.add_argument("--language", metavar="FOLDER", help="pretrained language model")
    parser.add_argument("--vision", metavar="FOLDER", help="pretrained encoder, such as a SigLIP")
    parser.add_argument(
        "--base", metavar="FOLDER",
        help="for a decoder: diffusers folder to begin with (default: a one-pass decoder)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", type=whole(0), metavar="INT",
        help="GPUs that it will train on, 0 for a CPU (default: those that are here)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=number(above_zero=True), metavar="GIB",
        help="memory of one GPU; keys are chosen so that a step fits (default: of the GPU here)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FOLDER", help="run folder of the training (default: runs/NAME)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def run(arguments: argparse.Namespace) -> None:
    from metamorph.init.run_file import check_place, commands, path_of, write_run_file

    path = path_of(arguments.name)
    check_place(path, arguments.overwrite)  # before anybody is asked
    wishes = _wishes(arguments, path.stem)
    written = write_run_file(path, wishes, arguments.overwrite)
    for choice in written.choices:
        print(f"  {choice.key}: {choice.value}")
    print(f"wrote {written.path}, with the reason of each key; next:")
    for command in commands(path, wishes):
        print(f"  {command}")


def _wishes(arguments: argparse.Namespace, name: str):
    """What the options say, and what is asked."""
    from metamorph.init.found_data import find_data
    from metamorph.init.proposal import Wishes
    from metamorph.init.questions import Questions
    from metamorph.init.run_file import check_model

    answer = Questions(sys.stdin is not None and sys.stdin.isatty()).answer
    stage = answer(
        "--stage", arguments.stage, f"What to train, {', '.join(STAGES)}", _stage, "instruct"
    )
    is_decoder = stage == "decoder"
    _refuse(arguments, stage)
    found = answer(
        "--data", arguments.data, "Your samples, a file or folder",
        partial(find_data, words=not is_decoder, image_root=arguments.image_root),
    )  # fmt: skip
    folder = language = vision = ""
    if not is_decoder and not (arguments.language or arguments.vision):
        question = "MetaMorph folder to go on from; empty to begin with a language model"
        folder = answer("--model", arguments.model, question, _optional("--model"), "")
    if not folder:
        if not is_decoder:
            language = answer(
                "--language", arguments.language, "Folder of the pretrained language model",
                partial(check_model, option="--language"),
            )  # fmt: skip
        vision = answer(
            "--vision", arguments.vision, "Folder of the pretrained encoder",
            partial(check_model, option="--vision"),
        )  # fmt: skip
    base = ""
    if is_decoder:
        question = "Diffusers folder to begin with; empty for a one-pass decoder"
        base = answer("--base", arguments.base, question, _optional("--base"), "")
    here, memory_here = _gpus_here()
    gpus = answer("--gpus", _text(arguments.gpus), "GPUs to train on, 0 for a CPU", _gpus, here)
    memory = None
    if not gpus and arguments.memory is not None:
        raise UserError("--memory: it is that of a GPU, and --gpus is 0; leave it out")
    if gpus and not is_decoder:
        question = "Memory of one GPU in GiB; empty if you do not know"
        memory = answer("--memory", _text(arguments.memory), question, _memory, memory_here)
    return Wishes(
        stage, arguments.output or f"runs/{name}", found, gpus, memory, folder, language, vision,
        base,
    )  # fmt: skip


def _refuse(arguments: argparse.Namespace, stage: Stage) -> None:
    """Raises `UserError` for options that do not go together."""
    unused = ("model", "language", "memory") if stage == "decoder" else ("base",)
    for option in unused:
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option}: stage {stage} does not use it; leave it out")
    if arguments.model is not None and (arguments.language or arguments.vision):
        raise UserError("--model: it has a language model and an encoder; leave out the others")


def _gpus_here() -> tuple[str, str]:
    """How many there are, and GiB of the first, as suggestions."""
    import torch

    if not torch.cuda.is_available():
        return "0", ""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return str(torch.cuda.device_count()), f"{memory:.0f}"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _stage(text: str) -> Stage:
    for stage in STAGES:
        if text == stage:
            return stage
    raise UserError(f"--stage: expected one of {', '.join(STAGES)}, got {text!r}")


def _optional(option: str):
    """Of a folder that may be left out."""
    from metamorph.init.run_file import check_model

    return lambda text: check_model(text, option) if text else ""


def _gpus(text: str) -> int:
    return _converted("--gpus", whole(0), text)


def _memory(text: str) -> float | None:
    return _converted("--memory", number(above_zero=True), text) if text else None


def _converted(option: str, convert, text: str):
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{option}: {error}") from error
