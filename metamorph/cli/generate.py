"""metamorph generate: one question to a trained model, or a file of them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from metamorph.cli.answer_arguments import (
    add_answer_arguments,
    add_conversation_arguments,
    add_model_arguments,
    add_system_argument,
    check_sampling,
    open_assistant,
    settings_of,
)
from metamorph.cli.arguments import whole
from metamorph.config.data_keys import MAX_PIXELS
from metamorph.errors import SampleError, UserError
from metamorph.folders import check_folder

if TYPE_CHECKING:  # `--help` answers at once
    from metamorph.generation.settings import AnswerSettings

NAME = "generate"
SUMMARY = "ask a trained model for text and pictures"
DESCRIPTION = """\
Asks a trained model. Pictures in the answer are drawn and saved as PNG files.

  metamorph generate "Generate an image of a large red circle at the top left."
  metamorph generate "What colour is the shape?" --image picture.png
  metamorph generate "<image>Make the circle green." --image picture.png --save-to drawings
  metamorph generate "Generate a puppy." --model runs/mine/model --decoder runs/decoder/decoder

With --prompts it answers every line of a file, many at once, and writes answers.jsonl and the
pictures to a folder. The same command goes on where a run was stopped. A line is a JSON object with
`prompt` and, if need be, `image` or `images`, or with `messages` as OpenAI's API has them; it may
have an `id`, and a value of its own for each option from --max-new-tokens to --guidance-interval.

  metamorph generate --prompts prompts.jsonl --output answers"""

SLOTS, MOST_SLOTS = 16, 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="question or request; may hold <image>"
    )
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="picture for the prompt, repeat for several",
    )  # fmt: skip
    parser.add_argument(
        "--save-to", type=Path, metavar="FOLDER",
        help="where pictures of the answer go (default: here)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a JSON object a line, in place of PROMPT"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="where the answers to --prompts go; goes on with what is there",
    )  # fmt: skip
    parser.add_argument(
        "--image-root", type=Path, metavar="FOLDER",
        help="where the pictures of --prompts lie (default: the folder of that file)",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=whole(1, MOST_SLOTS), metavar="INT",
        help=f"answers to --prompts that are made at once (default: {SLOTS})",
    )  # fmt: skip
    add_system_argument(parser)
    add_answer_arguments(parser)
    add_conversation_arguments(parser)
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> int | None:
    _check_options(arguments)
    settings = settings_of(arguments)
    if arguments.prompts is not None:
        return _answer_all(arguments, settings)
    return _answer_one(arguments, settings)


def _check_options(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for options of one prompt and of many together."""
    if (arguments.prompt is None) == (arguments.prompts is None):
        found = "neither" if arguments.prompt is None else "both"
        raise UserError(f"expected PROMPT or --prompts FILE, got {found}")
    many = arguments.prompts is not None
    for option, is_of_many, value in (
        ("--image", False, arguments.image),
        ("--save-to", False, arguments.save_to),
        ("--output", True, arguments.output),
        ("--image-root", True, arguments.image_root),
        ("--reencode", True, arguments.reencode),
        ("--slots", True, arguments.slots),
    ):
        if value and is_of_many != many:
            raise UserError(f"{option} goes with {'--prompts' if is_of_many else 'PROMPT'} only")
    if not many:  # a line of a file may have a temperature of its own
        check_sampling(arguments)
    if many and arguments.output is None:
        raise UserError("--prompts needs --output FOLDER, where the answers go")


def _answer_one(arguments: argparse.Namespace, settings: AnswerSettings) -> None:
    from metamorph.data.images import open_image
    from metamorph.generation.messages import SYSTEM, Drawing, Message, question
    from metamorph.generation.picture_files import png_bytes

    folder = arguments.save_to or Path(".")
    make_writable(folder)  # not after minutes of work
    try:
        images = [open_image(path, MAX_PIXELS) for path in arguments.image]
    except SampleError as error:
        raise UserError(f"--image: {error}") from error
    messages = [question(arguments.prompt, *images)]
    if arguments.system:
        messages.insert(0, Message(SYSTEM, arguments.system))
    assistant = open_assistant(arguments, slots=1, open_when_needed=True)
    [reply] = assistant.generate([messages], settings)
    for part in reply.parts:
        if isinstance(part, Drawing):
            if part.picture is not None:
                path = free_name(folder)
                path.write_bytes(png_bytes(part))
                print(f"[picture: {path}]")
        elif text := part.strip():
            print(text)
    if reply.finish_reason == "length":
        print("metamorph: the answer was cut, see --max-new-tokens", file=sys.stderr)
    if undrawn := len(reply.drawings) - len(reply.pictures):
        raise UserError(
            f"the pictures of the answer ({undrawn}) could not be drawn: "
            f"{arguments.model} has no decoder/; give one that was trained apart by --decoder "
            f"FOLDER, or join both: metamorph join {arguments.model} --decoder FOLDER --output BOTH"
        )


def _answer_all(arguments: argparse.Namespace, settings: AnswerSettings) -> int:
    from metamorph.generation.answer_folder import digest_of_model, open_answers
    from metamorph.generation.answering import Tally, answer_all
    from metamorph.generation.flat_settings import flat
    from metamorph.generation.prompt_files import read_prompts

    file = read_prompts(
        arguments.prompts, settings, system=arguments.system, image_root=arguments.image_root
    )
    folders = [folder for folder in (arguments.model, arguments.decoder) if folder is not None]
    manifest = {
        "prompts": file.digest,
        "model": digest_of_model(*map(check_folder, folders)),
        "precision": arguments.precision,
        "fp8_backend": arguments.fp8_backend,
        "weights": arguments.weights,
        "prefill_attention": arguments.prefill_attention,
        "decoder_precision": arguments.decoder_precision,
        "decoder_attention": arguments.decoder_attention,
        "decoder_group_norm": arguments.decoder_group_norm,
        "system": arguments.system,
        "image_root": str(file.image_root),
        "reencode": arguments.reencode,
        **flat(settings),
    }
    tally, total = Tally(), len(file.prompts)
    with open_answers(arguments.output, manifest, file.prompts) as folder:
        if len(folder.answered) < total:
            assistant = open_assistant(arguments, arguments.slots or SLOTS)
            tally = answer_all(assistant, file, folder, reencode=arguments.reencode)
    print(f"{folder.path} holds the answers to {len(folder.answered)} of {total} prompts")
    if tally.cut:
        print(f"metamorph: {tally.cut} answers were cut, see --max-new-tokens", file=sys.stderr)
    if tally.failed:
        print(f"metamorph: {tally.summary}", file=sys.stderr)
    return 1 if tally.failed else 0


def make_writable(folder: Path) -> None:
    """Makes the folder for pictures, if need be. `UserError` if files cannot be written to it."""
    if folder.is_file():
        raise UserError(f"--save-to: {folder} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--save-to: cannot write to {folder}: {error.strerror}") from error


def free_name(folder: Path) -> Path:
    """The first `picture-N.png` that does not exist yet: nothing is overwritten."""
    number = 1
    while (path := folder / f"picture-{number}.png").exists():
        number += 1
    return path
