"""metamorph evaluate: how well decoders draw."""

import argparse
from pathlib import Path

from metamorph.cli.answer_arguments import add_drawing_arguments, drawing_settings_of
from metamorph.cli.arguments import check_new, whole
from metamorph.config.keys import MAX_SEED

NAME = "evaluate"
SUMMARY = "measure how well decoders draw"
DESCRIPTION = """\
Redraws held-out pictures from their own features, and from those that a model predicts of their
captions, and measures what came of it: the cosine of features when drawings are encoded again,
PSNR, SSIM, seconds a picture; FID and CLIP score where their weights are at hand. Several decoders
are compared on the same pictures. Without --data these are toy scenes in combinations that training
never shows, and an exact checker reads colour, shape, size and place of what was drawn.

  metamorph evaluate --decoder runs/quickstart/model/decoder --model runs/quickstart/model \\
    --output evaluation
  metamorph evaluate --decoder runs/a/decoder --decoder runs/b/decoder --vision siglip \\
    --data photographs --output evaluation

Writes evaluation.json and samples.png to --output, and prints a table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder", type=Path, action="append", required=True, metavar="FOLDER",
        help="decoder to measure, repeat for several",
    )  # fmt: skip
    encoder = parser.add_mutually_exclusive_group(required=True)
    encoder.add_argument(
        "--vision", type=Path, metavar="FOLDER",
        help="the encoder: a SigLIP folder, or a model folder for that in it",
    )  # fmt: skip
    encoder.add_argument(
        "--model", type=Path, metavar="FOLDER",
        help="model folder: its encoder, and the features that it predicts of captions",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="PATH",
        help="folder of pictures, or records of image and caption: .jsonl, .json, .tar or .parquet "
        "(default: toy scenes)",
    )  # fmt: skip
    parser.add_argument(
        "--image-root", type=Path, metavar="FOLDER",
        help="where the pictures of a .jsonl lie (default: the folder of that file)",
    )  # fmt: skip
    parser.add_argument(
        "--fit", choices=("squash", "crop"), default="squash",
        help="how pictures of --data become squares, as decoder.fit of the decoder's run "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=whole(1), default=200, metavar="INT",
        help="most pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--inception", type=Path, metavar="FILE",
        help="weights of Inception for FID (default: where torch-fidelity keeps them)",
    )  # fmt: skip
    parser.add_argument(
        "--clip", type=Path, metavar="FOLDER", help="CLIP of Hugging Face for the CLIP score"
    )
    add_drawing_arguments(parser, "each decoder's")
    parser.add_argument(
        "--batch", type=whole(1), default=16, metavar="INT",
        help="pictures at once (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--shown", type=whole(1, 100), default=8, metavar="INT",
        help="pictures on the sheet (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, metavar="INT",
        help="of noise, order of pictures and intervals (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from metamorph.devices import resolve_device
    from metamorph.libraries import require

    require("metamorph evaluate", ["torchmetrics"], torch.device("cpu"))
    check_new(arguments.output)
    drawing = drawing_settings_of(arguments)
    from metamorph.evaluation.comparison import Comparison, Weights
    from metamorph.evaluation.comparison_table import comparison_table
    from metamorph.evaluation.decoders import DrawingOptions
    from metamorph.evaluation.held_out_pictures import open_pictures
    from metamorph.evaluation.report import heading, write_report

    device = resolve_device(arguments.device)
    pictures = open_pictures(
        arguments.data, arguments.count, arguments.seed,
        words=arguments.model is not None or arguments.clip is not None,
        image_root=arguments.image_root, fit=arguments.fit,
    )  # fmt: skip
    comparison = Comparison(
        arguments.decoder,
        Weights(
            arguments.vision or arguments.model,
            arguments.model,
            arguments.inception,
            arguments.clip,
        ),
        device,
    )
    options = DrawingOptions(arguments.seed, arguments.batch, drawing)
    report, sheet = comparison.run(pictures, options, arguments.shown)
    report = heading(arguments.command, arguments.seed, str(device)) | report
    arguments.output.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.output / "samples.png")
    write_report(arguments.output / "evaluation.json", report)
    print(f"{report['data']['pictures']} pictures of {pictures.name}, with 95 % intervals\n")
    print(comparison_table(report))
    for note in report["notes"]:
        print(note)
    print(f"{arguments.output} holds evaluation.json and samples.png")
