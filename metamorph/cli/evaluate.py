"""metamorph evaluate: how well decoders draw, and how well whole models answer and draw."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from metamorph.cli.answer_arguments import add_drawing_arguments, drawing_settings_of
from metamorph.cli.arguments import check_new, whole
from metamorph.config.keys import MAX_SEED
from metamorph.errors import UserError

NAME = "evaluate"
SUMMARY = "measure how well decoders draw, or whole models answer and draw"
DESCRIPTION = """\
With --decoder: redraws held-out pictures from their own features, and from those that a model
predicts of their captions, and measures what came of it: the cosine of features when drawings are
encoded again, PSNR, SSIM, seconds a picture; FID and CLIP score where their weights are at hand.
Several decoders are compared on the same pictures. Without --data these are toy scenes in
combinations that training never shows, and an exact checker reads colour, shape, size and place of
what was drawn. Writes evaluation.json, samples.png and report.html to --output, and prints a table.

  metamorph evaluate --decoder runs/quickstart/model/decoder --model runs/quickstart/model \\
    --output evaluation
  metamorph evaluate --decoder runs/a/decoder --decoder runs/b/decoder --vision siglip \\
    --data photographs --output evaluation

With --model alone: asks the model about such toy scenes, and for drawings of them, and writes the
same files, with what became of each sample.

  metamorph evaluate --model runs/quickstart/model --output evaluation-of-model

With --compare: a paired test on the samples that the reports of two models have in common; with
--output as a page, too.

  metamorph evaluate --compare before/evaluation.json after/evaluation.json"""

COUNTS = {"decoders": 200, "model": 100}
SHOWN = {"decoders": 8, "model": 24}
COMMON = {"output", "count", "shown", "seed", "device", "drawing_steps", "sampler", "guidance",
          "guidance_rescale", "guidance_interval"}  # fmt: skip
OPTIONS = {  # what applies to each of the three, beside what asks for it
    "decoders": COMMON
    | {"decoder", "model", "vision", "data", "image_root", "fit", "inception", "clip", "batch"},
    "model": COMMON | {"model", "suite", "text", "wording"},
    "reports": {"compare", "against", "suite", "output"},
}
ASKED_BY = {"decoders": "--decoder", "model": "--model without --decoder", "reports": "--compare"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder", type=Path, action="append", metavar="FOLDER",
        help="decoder to measure, repeat for several",
    )  # fmt: skip
    encoder = parser.add_mutually_exclusive_group()
    encoder.add_argument(
        "--vision", type=Path, metavar="FOLDER",
        help="the encoder: its folder, or a model folder for that in it",
    )  # fmt: skip
    encoder.add_argument(
        "--model", type=Path, metavar="FOLDER",
        help="model folder: its encoder, and the features that it predicts of captions; without "
        "--decoder the model to measure, which may be a language model of Hugging Face",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE",
        help="reports of two models: how the second differs from the first",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, nargs="+", metavar="FILE",
        help="with --compare: reports of several trainings, which differ from those of --compare",
    )  # fmt: skip
    parser.add_argument(
        "--suite", type=_names, metavar="NAME,...",
        help="parts to measure of a model, or to compare (default: all that it can be asked)",
    )  # fmt: skip
    parser.add_argument(
        "--text", type=Path, metavar="FILE",
        help="what perplexity is measured on: plain text, or conversations as .jsonl or .json "
        "(default: toy scenes in words)",
    )  # fmt: skip
    parser.add_argument(
        "--wording", default="toy", metavar="NAME",
        help="how a model is asked: toy, english-train or english-held_out (default: %(default)s)",
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
        "--count", type=whole(1), metavar="INT",
        help="most pictures (default: {decoders}), or samples a suite ({model})".format(**COUNTS),
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER")
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
        "--shown", type=whole(1, 100), metavar="INT",
        help="pictures on the sheet (default: {decoders}, of a model {model})".format(**SHOWN),
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, metavar="INT",
        help="of noise, order of pictures and intervals (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _names(text: str) -> list[str]:
    return text.split(",")


def run(arguments: argparse.Namespace) -> None:
    asked = _asked(arguments)
    if asked == "reports":
        _compare(arguments)
        return
    if arguments.output is None:
        raise UserError("--output: expected a new folder for the report")
    check_new(arguments.output)
    arguments.count = arguments.count or COUNTS[asked]
    arguments.shown = arguments.shown or SHOWN[asked]
    if asked == "decoders":
        _decoders(arguments)
    else:
        _model(arguments)


def _asked(arguments: argparse.Namespace) -> str:
    """Which of the three. Raises `UserError` for none, and for options of the others."""
    if arguments.compare is not None:
        asked = "reports"
    elif arguments.decoder is not None:
        asked = "decoders"
        if arguments.vision is None and arguments.model is None:
            raise UserError("--decoder: its encoder is needed, give --vision or --model")
    elif arguments.model is not None:
        asked = "model"
    else:
        raise UserError("evaluate: give --decoder, --model or --compare, the last with two reports")
    known = argparse.ArgumentParser()
    add_arguments(known)
    for name in set().union(*OPTIONS.values()) - OPTIONS[asked]:
        given: Any = getattr(arguments, name)
        if given != known.get_default(name):
            option = f"--{name.replace('_', '-')}"
            others = [ASKED_BY[kind] for kind, of in OPTIONS.items() if name in of]
            raise UserError(f"{option} goes with {' or '.join(others)}, not with {ASKED_BY[asked]}")
    return asked


def _compare(arguments: argparse.Namespace) -> None:
    from metamorph.evaluation.page import PAGE, in_text, write_page
    from metamorph.evaluation.report import versions
    from metamorph.evaluation.report_comparison import compare

    first, second = arguments.compare, arguments.against
    if second is None:
        if len(first) != 2:
            raise UserError(
                f"--compare: expected two reports, got {len(first)}; several of each side are "
                f"--compare FILE ... --against FILE ..."
            )
        first, second = first[:1], first[1:]
    if arguments.output is not None:
        check_new(arguments.output)
    tables, notes = compare(first, second, arguments.suite)
    print("\n".join([in_text(tables), *notes]))
    if arguments.output is not None:
        before, after = (", ".join(map(str, side)) for side in (first, second))
        lead = f"First is {before}; second is {after}."
        made = {"command": shlex.join(arguments.command), "versions": versions()}
        write_page(arguments.output, "Whether models differ", lead, tables, notes, made)
        print(f"{arguments.output} holds {PAGE}")


def _model(arguments: argparse.Namespace) -> None:
    from metamorph.devices import resolve_device
    from metamorph.evaluation.model_report import measure_model, model_sheet, model_tables
    from metamorph.evaluation.options import Options
    from metamorph.evaluation.page import PAGE, in_text, write_page
    from metamorph.evaluation.report import heading, write_evaluation
    from metamorph.evaluation.suites import check_names
    from metamorph.evaluation.task_source import SOURCES

    if arguments.suite is not None:
        check_names(arguments.suite)
    if arguments.wording not in SOURCES:
        known = ", ".join(SOURCES)
        raise UserError(f"--wording: expected one of {known}, got {arguments.wording!r}")
    if arguments.wording != "toy" and set(arguments.suite or ()) == {"text"}:
        raise UserError("--wording: the suite text asks nothing; leave it out")
    if arguments.text is not None and "text" not in (arguments.suite or ["text"]):
        raise UserError("--text goes with the suite text, which --suite leaves out")
    device = resolve_device(arguments.device)
    options = Options(
        arguments.count, arguments.seed, drawing_settings_of(arguments),
        SOURCES[arguments.wording], arguments.text,
    )  # fmt: skip
    report, samples = measure_model(arguments.model, device, options, arguments.suite)
    report = heading(arguments.command, arguments.seed, str(device)) | report
    sheet, tables = model_sheet(samples, arguments.shown), model_tables(report, samples)
    written = write_evaluation(arguments.output, report, sheet)
    title, notes = f"{arguments.model} on held-out toy scenes", report["notes"]
    lead = f"Training never shows {report['held_out']}."
    write_page(arguments.output, title, lead, tables, notes, report, sheet)
    print(f"{title}, with 95 % intervals\n")
    print("\n".join([in_text(tables), *notes]))
    print(f"{arguments.output} holds {written} and {PAGE}")


def _decoders(arguments: argparse.Namespace) -> None:
    import torch

    from metamorph.devices import resolve_device
    from metamorph.libraries import require

    require("metamorph evaluate", ["torchmetrics"], torch.device("cpu"))
    drawing = drawing_settings_of(arguments)
    from metamorph.evaluation.comparison import Comparison, Weights
    from metamorph.evaluation.comparison_table import comparison_table, comparison_tables
    from metamorph.evaluation.decoders import DrawingOptions
    from metamorph.evaluation.held_out_pictures import open_pictures
    from metamorph.evaluation.page import PAGE, write_page
    from metamorph.evaluation.report import heading, write_evaluation

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
    report = heading(arguments.command, arguments.seed, str(device), "torchmetrics") | report
    written = write_evaluation(arguments.output, report, sheet)
    title, notes = f"{report['data']['pictures']} pictures of {pictures.name}", report["notes"]
    lead = "Drawn again from features, and encoded again: what was lost was lost by the decoder."
    write_page(arguments.output, title, lead, comparison_tables(report), notes, report, sheet)
    print(f"{title}, with 95 % intervals\n")
    print("\n".join([comparison_table(report), *notes]))
    print(f"{arguments.output} holds {written} and {PAGE}")
