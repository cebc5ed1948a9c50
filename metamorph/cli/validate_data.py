"""The verbs of the command line that look at data: validate-data and encode."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from metamorph.arguments import whole
from metamorph.errors import UserError

VALIDATE_HELP = """\
Reads every sample of a run's data once, its images too, and reports for each part: counts, lengths
in tokens, bad samples by cause, how full packed rows will be. Ends with 1 if more samples of a part
are bad than data.skip_limit allows.

  metamorph validate-data my.yaml
  metamorph validate-data mixture.yaml --tokenizer llama --samples 1000"""

ENCODE_HELP = """\
Writes the frozen encoder's features of every image of a run's data to a folder, once. Training with
--data.features FOLDER then reads them and never runs the encoder. What is there already is kept.

  metamorph encode my.yaml --output features
  metamorph encode mixture.yaml --vision siglip --grid 8 --dtype int8 --output features
  metamorph encode my.yaml --output features --verify"""


def add_data_verbs(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds both; ``add`` makes a parser of a verb's name, summary and description."""
    check = add("validate-data", "check the data of a run", VALIDATE_HELP)
    check.add_argument("data", type=Path, metavar="FILE", help="run file, or mixture file")
    check.add_argument(
        "--samples", type=whole(0), default=0, metavar="INT",
        help="look at so many of each part, 0 for all (default)",
    )  # fmt: skip
    check.add_argument(
        "--tokenizer", default="", metavar="FOLDER", help="whose tokens to count (mixture file)"
    )
    check.add_argument(
        "--grid", type=whole(1), metavar="INT", help="tokens a side of an image (mixture file)"
    )
    check.add_argument("--row-length", type=whole(2), metavar="INT", help="tokens in a packed row")
    check.add_argument(
        "--workers", type=whole(0), default=0, metavar="INT",
        help="processes that read samples (default: none but this one)",
    )  # fmt: skip

    encode = add("encode", "write the encoder's features of all images to disk", ENCODE_HELP)
    encode.add_argument("data", type=Path, metavar="FILE", help="run file, or mixture file")
    encode.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    encode.add_argument("--vision", default="", metavar="FOLDER", help="SigLIP (mixture file)")
    encode.add_argument(
        "--grid", type=whole(1), metavar="INT", help="tokens a side of an image (mixture file)"
    )
    encode.add_argument(
        "--dtype", choices=("bf16", "int8", "fp32"), default="bf16",
        help="how features are stored (default: %(default)s)",
    )  # fmt: skip
    encode.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32",
        help="arithmetic of the encoder (default: %(default)s)",
    )  # fmt: skip
    encode.add_argument("--batch", type=whole(1), default=64, metavar="INT", help="images at once")
    encode.add_argument(
        "--shard-images", type=whole(1), default=4096, metavar="INT",
        help="images in a file (default: %(default)s)",
    )  # fmt: skip
    encode.add_argument(
        "--threads", type=whole(1), default=4, metavar="INT",
        help="threads that open images (default: %(default)s)",
    )  # fmt: skip
    encode.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    encode.add_argument(
        "--verify", action="store_true", help="only check the hash of what is in --output"
    )


def validate_data(arguments: argparse.Namespace) -> int:
    from metamorph.data.mixture import parts_of
    from metamorph.data.sources import open_source
    from metamorph.data.tool_inputs import open_chat_encoder, read_data_file
    from metamorph.data.validate import validate_part

    config = read_data_file(arguments.data)
    if arguments.tokenizer:
        config.model.folder, config.model.language = "", arguments.tokenizer
    config.model.grid = arguments.grid or config.model.grid
    encoder = open_chat_encoder(config)
    row_length = arguments.row_length or config.data.row_length
    reports = [
        validate_part(
            name, part, encoder, row_length, samples=arguments.samples, workers=arguments.workers
        )
        for name, part in parts_of(open_source(config.data, config.seed)).items()
    ]
    for report in reports:
        print(report.text())
    over = [report.name for report in reports if report.bad_share > config.data.skip_limit]
    if over:
        limit = f"{config.data.skip_limit:.0%}"
        print(f"metamorph: more than {limit} of {', '.join(over)} are bad", file=sys.stderr)
    return 1 if over else 0


def encode_data(arguments: argparse.Namespace) -> None:
    from metamorph.data.encode import encode, verify
    from metamorph.data.mixture import parts_of
    from metamorph.data.sources import open_source
    from metamorph.data.tool_inputs import read_data_file
    from metamorph.decoder.training import open_encoder
    from metamorph.training.run_folder import resolve_device

    if arguments.verify:
        broken = verify(arguments.output)
        if broken:
            raise UserError(
                f"--verify: {', '.join(broken)} of {arguments.output} are missing or changed; "
                f"the same command without --verify makes them anew"
            )
        print(f"every file in {arguments.output} is as it was written")
        return
    config = read_data_file(arguments.data)
    if arguments.vision:
        config.model.folder, config.model.vision = "", arguments.vision
    config.model.grid = arguments.grid or config.model.grid
    vision = open_encoder(config.model).to(resolve_device(arguments.device))
    source = open_source(replace(config.data, shuffle=False), config.seed)
    index, skips = encode(
        parts_of(source), vision, arguments.output, arguments.dtype,
        precision=arguments.precision, batch_size=arguments.batch,
        shard_rows=arguments.shard_images, threads=arguments.threads,
    )  # fmt: skip
    for cause, (count, example) in skips.by_cause().items():
        print(f"skipped {count} samples: {cause} (first: {example})")
    print(
        f"{arguments.output} holds {index.rows} images as {index.dtype}; 1 - cosine to fp32: "
        f"mean {index.mean_error:.1e}, largest {index.largest_error:.1e}"
    )
