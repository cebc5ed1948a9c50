"""metamorph validate-data: what is in the data of a run, and what of it is bad."""

import argparse
import sys
from pathlib import Path

from metamorph.cli.arguments import whole

NAME = "validate-data"
SUMMARY = "check the data of a run"
DESCRIPTION = """\
Reads every sample of a run's data once, its images too, and reports for each part: counts, lengths
in tokens, bad samples by cause, how full packed rows will be. Ends with 1 if more samples of a part
are bad than data.skip_limit allows.

  metamorph validate-data my.yaml
  metamorph validate-data mixture.yaml --tokenizer llama --samples 1000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="FILE", help="run file, or mixture file")
    parser.add_argument(
        "--samples", type=whole(0), default=0, metavar="INT",
        help="look at so many of each part, 0 for all (default)",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", default="", metavar="FOLDER", help="whose tokens to count (mixture file)"
    )
    parser.add_argument(
        "--grid", type=whole(1), metavar="INT", help="tokens a side of an image (mixture file)"
    )
    parser.add_argument("--row-length", type=whole(2), metavar="INT", help="tokens in a packed row")
    parser.add_argument(
        "--workers", type=whole(0), default=0, metavar="INT",
        help="processes that read samples (default: none but this one)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from metamorph.cli.data_inputs import open_chat_encoder, read_data_file, set_grid
    from metamorph.data.mixture import parts_of
    from metamorph.data.opening import open_source
    from metamorph.data.validate import validate_part

    config = read_data_file(arguments.data)
    if arguments.tokenizer:
        config.model.folder, config.model.language = "", arguments.tokenizer
    set_grid(config, arguments.grid)
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
