"""metamorph validate-data: what is in the data of a run, and what of it is bad."""

import argparse
import sys

from metamorph.cli.arguments import whole
from metamorph.cli.data_inputs import add_data_arguments, open_chat_encoder, read_data_inputs

NAME = "validate-data"
SUMMARY = "check the data of a run"
DESCRIPTION = """\
Reads every sample of a run's data once, its images too, and reports for each part: counts, lengths
in tokens, sizes of images, bad samples by cause, how full packed rows will be. Of the data of a
decoder only the pictures count. Ends with 1 if more samples of a part are bad than data.skip_limit
allows. Keys of the run can be overridden as in metamorph train:

  metamorph validate-data my.yaml
  metamorph validate-data my.yaml --data.path other.jsonl --bad bad.jsonl
  metamorph validate-data mixture.yaml --model.language llama --samples 1000
  metamorph validate-data photographs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument(
        "--samples", type=whole(0), default=0, metavar="INT",
        help="look at so many of each part, 0 for all (default)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=whole(0), default=0, metavar="INT",
        help="processes that read samples (default: none but this one)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    config = read_data_inputs(arguments)
    from metamorph.data.bad_list import bad_list
    from metamorph.data.opening import open_parts
    from metamorph.data.validate import validate_part
    from metamorph.model.opening import check_positions, language_sizes

    words = not config.trains_decoder
    encoder = open_chat_encoder(config) if words else None
    if words:
        check_positions(config.data.row_length, language_sizes(config.model))
    parts = open_parts(config.data, config.seed, words)
    over = []
    with bad_list(arguments.bad) as on_bad:
        for name, part in parts.items():
            report = validate_part(
                name, part, encoder, config.data.row_length, samples=arguments.samples,
                workers=arguments.workers, too_long=config.data.too_long, on_bad=on_bad,
            )  # fmt: skip
            print(report.text(), flush=True)
            if report.bad_share > config.data.skip_limit:
                over.append(name)
    if over:
        limit = f"{config.data.skip_limit:.0%}"
        print(f"metamorph: more than {limit} of {', '.join(over)} are bad", file=sys.stderr)
    return 1 if over else 0
