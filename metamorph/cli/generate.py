"""metamorph generate: one question to a trained model."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import get_args

from metamorph.cli.arguments import not_negative, whole
from metamorph.config.data_keys import MAX_PIXELS
from metamorph.config.keys import MAX_SEED, Fp8Backend, Precision
from metamorph.errors import SampleError, UserError

NAME = "generate"
SUMMARY = "ask a trained model for text and pictures"
DESCRIPTION = """\
Asks a trained model. Pictures in the answer are drawn and saved as PNG files.

  metamorph generate "Generate an image of a large red circle at the top left."
  metamorph generate "What colour is the shape?" --image picture.png
  metamorph generate "<image>Make the circle green." --image picture.png --save-to drawings
  metamorph generate "Generate a puppy." --model runs/mine/model --decoder runs/decoder/decoder"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="question or request; may hold <image>")
    parser.add_argument(
        "--model", type=Path, default=Path("runs/quickstart/model"), metavar="FOLDER",
        help="model folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--decoder", type=Path, metavar="FOLDER",
        help="folder of a decoder that draws (default: decoder/ in the model folder)",
    )  # fmt: skip
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="picture for the prompt, repeat for several",
    )  # fmt: skip
    parser.add_argument(
        "--save-to", type=Path, default=Path("."), metavar="FOLDER",
        help="where pictures of the answer go (default: here)",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=256, metavar="INT",
        help="longest answer, a picture's tokens included (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=not_negative, default=0.0, metavar="FLOAT",
        help="of text; 0 always takes the likeliest token (default)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, metavar="INT",
        help="of text and drawing noise (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance", type=not_negative, metavar="FLOAT",
        help="guidance scale (default: the decoder's)",
    )  # fmt: skip
    parser.add_argument(
        "--drawing-steps", type=whole(1), metavar="INT",
        help="denoising steps (default: the decoder's)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32",
        help="arithmetic of the language model, as in training (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--fp8-backend", choices=get_args(Fp8Backend), default="torchao",
        help="who computes float8 products (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from metamorph.data.images import open_image
    from metamorph.devices import resolve_device
    from metamorph.generation.assistant import Assistant
    from metamorph.generation.sampling import Sampling

    make_writable(arguments.save_to)  # not after minutes of work
    try:
        images = tuple(open_image(path, MAX_PIXELS) for path in arguments.image)
    except SampleError as error:
        raise UserError(f"--image: {error}") from error
    device = resolve_device(arguments.device)
    sampling = Sampling(
        temperature=arguments.temperature,
        generator=torch.Generator(device).manual_seed(arguments.seed),
    )
    chat = Assistant.from_pretrained(
        arguments.model,
        device,
        decoder=arguments.decoder,
        precision=arguments.precision,
        fp8_backend=arguments.fp8_backend,
    )
    reply = chat.reply(
        [(arguments.prompt, images)], max_new_tokens=arguments.max_new_tokens, sampling=sampling
    )[0]
    can_draw = chat.decoder is not None
    pictures = []
    if can_draw:
        pictures = chat.draw(
            reply.features,
            seed=arguments.seed,
            guidance_scale=arguments.guidance,
            sampling_steps=arguments.drawing_steps,
        )
    unsaved = iter(pictures)
    for segment in reply.segments:
        if isinstance(segment, str):
            print(segment)
        elif can_draw:
            path = free_name(arguments.save_to)
            next(unsaved).save(path)
            print(f"[picture: {path}]")
    if reply.finish_reason == "length":
        print("metamorph: the answer was cut, see --max-new-tokens", file=sys.stderr)
    if reply.features and not can_draw:
        raise UserError(
            f"the pictures of the answer ({len(reply.features)}) could not be drawn: "
            f"{arguments.model} has no decoder/; give one that was trained apart by --decoder "
            f"FOLDER, or join both: metamorph join {arguments.model} --decoder FOLDER --output BOTH"
        )


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
