"""metamorph encode: the frozen encoder's features of all images, once, to disk."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

from metamorph.cli.arguments import whole
from metamorph.cli.data_inputs import (
    SECTIONS,
    add_data_arguments,
    check_chat_format,
    read_data_inputs,
)
from metamorph.config.keys import FeatureDtype
from metamorph.config.reading import add_config_arguments, overrides_from_namespace
from metamorph.errors import UserError

NAME = "encode"
SUMMARY = "write the encoder's features of all images to disk"
KEYS = ("decoder.fit",)  # of a decoder, all that pictures are read by
OF_VERIFY = ("help", "data", "output", "verify")  # all that a check of hashes uses
DESCRIPTION = """\
Writes the frozen encoder's features of every image of a run's data to a folder, once. Training with
--data.features FOLDER then reads them and never runs the encoder. What is there already is kept.
Only pictures count, whatever words stand beside them. Keys of the run can be overridden as in
metamorph train.

With --latents BASE (a diffusers folder; without it the run's decoder.base), FOLDER/latents gets the
latents of its VAE, too. Training a decoder with --data.features FOLDER --decoder.latents
FOLDER/latents then runs neither encoder nor VAE.

  metamorph encode my.yaml --output features
  metamorph encode my.yaml --output features --data.path other.jsonl --bad bad.jsonl
  metamorph encode mixture.yaml --model.vision siglip --model.grid 8 --dtype int8 --output features
  metamorph encode photographs --model.vision siglip --output features
  metamorph encode photographs --model.vision siglip --latents sd --decoder.fit crop --output cache
  metamorph encode my.yaml --output features --verify"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--dtype", choices=get_args(FeatureDtype), default="bf16",
        help="how they are stored; latents have no int8, it means fp16 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--latents", nargs="?", const="", metavar="BASE",
        help="cache latents of this diffusers folder, or of the run's decoder.base, too",
    )  # fmt: skip
    add_config_arguments(parser, *KEYS)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32",
        help="arithmetic of the encoder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch", type=whole(1), default=64, metavar="INT", help="images at once")
    parser.add_argument(
        "--shard-images", type=whole(1), default=4096, metavar="INT",
        help="images in a file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=whole(1), default=4, metavar="INT",
        help="threads that open images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--verify", action="store_true", help="only check the hash of what is in --output"
    )


def run(arguments: argparse.Namespace) -> None:
    from metamorph.data.bad_list import bad_list
    from metamorph.data.encode import encode, verify
    from metamorph.data.latents import FOLDER, LatentIndex
    from metamorph.data.opening import open_parts
    from metamorph.data.shards import read_index
    from metamorph.devices import resolve_device
    from metamorph.lock import locked
    from metamorph.model.opening import open_encoder

    config = read_data_inputs(arguments, *KEYS)
    if arguments.verify:
        _check_alone(arguments)
        broken = verify(arguments.output)
        if broken:
            raise UserError(
                f"--verify: {', '.join(broken)} of {arguments.output} are missing or changed; "
                f"the same command without --verify makes them anew"
            )
        print(f"every file in {arguments.output} is as it was written")
        return
    check_chat_format(config)  # before hours are spent on features that nothing could train on
    device = resolve_device(arguments.device)
    latents = None
    if arguments.latents is not None:
        from metamorph.decoder.latents import VaeEncoder  # diffusers takes seconds

        base = arguments.latents or config.decoder.base
        if not base:
            raise UserError(
                "--latents: the run names no decoder.base; give the diffusers folder of the VAE"
            )
        latents = VaeEncoder(base, config.decoder.fit, device)
    vision = open_encoder(config.model).to(device)
    parts = open_parts(replace(config.data, shuffle=False), config.seed, words=False)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with locked(arguments.output, "--output"), bad_list(arguments.bad) as on_bad:
        index, skips = encode(
            parts, vision, arguments.output, arguments.dtype,
            fit=config.decoder.fit, latents=latents, precision=arguments.precision,
            batch_size=arguments.batch, shard_rows=arguments.shard_images,
            threads=arguments.threads, on_bad=on_bad,
        )  # fmt: skip
    for cause, (count, example) in skips.by_cause().items():
        print(f"skipped {count} of {skips.tried} samples: {cause} (first: {example})")
    print(
        f"{arguments.output} holds {index.rows} images as {index.dtype}; 1 - cosine to fp32: "
        f"mean {index.mean_error:.1e}, largest {index.largest_error:.1e}"
    )
    if latents is not None:
        folder = arguments.output / FOLDER
        beside = read_index(LatentIndex, folder)
        print(
            f"{folder} holds latents of {beside.rows} images as {beside.dtype}; difference to "
            f"fp32: mean {beside.mean_error:.1e}, of a picture at most {beside.largest_error:.1e}"
        )


def _check_alone(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for options of what is made, where nothing is."""
    known = argparse.ArgumentParser()
    add_arguments(known)
    said = [
        action.dest.replace("_", "-")
        for action in known._actions
        if action.dest not in OF_VERIFY
        and "." not in action.dest  # a key of the run
        and getattr(arguments, action.dest) != action.default
    ]
    said += overrides_from_namespace(arguments, (), *SECTIONS, *KEYS)
    if said:
        raise UserError(f"--{said[0]}: --verify makes nothing, and does not use it; leave it out")
