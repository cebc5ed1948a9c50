"""A whole model measured: its suites, a report of them, tables and a sheet of drawings."""

from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from metamorph.decoder.unopened import kind_of
from metamorph.errors import UserError
from metamorph.evaluation.contact_sheet import SheetDrawing, SheetEntry, contact_sheet
from metamorph.evaluation.options import Options
from metamorph.evaluation.page import Line, Table
from metamorph.evaluation.paired_tests import mcnemar
from metamorph.evaluation.report import MODELS, TEXT
from metamorph.evaluation.scored import Scored, means
from metamorph.evaluation.suites import SUITES, Suite
from metamorph.evaluation.text_ability import NATS, language_ability, perplexity
from metamorph.evaluation.toy_tasks import describe_split
from metamorph.folders import check_folder, check_result
from metamorph.generation.assistant import Assistant
from metamorph.generation.drawing import check_drawing
from metamorph.generation.engine import EngineOptions
from metamorph.generation.settings import DEFAULT_DRAWING
from metamorph.model.unified import MODEL_TYPE, MetaMorphConfig
from metamorph.model.weights import read_json
from metamorph.tokens import IMAGE_PLACEHOLDER

PERPLEXITY = "perplexity"
MOST_PICTURES, MOST_WORDS = 8, 1024  # tokens of words: more than any sample of a suite has
LARGEST_EXPONENT = 700  # nats: a model that is so far off has no perplexity that floats can hold


def measure_model(
    folder: Path, device: torch.device, options: Options, asked: Sequence[str] | None
) -> tuple[dict, dict[str, list[Scored]]]:
    """The report of the model in a folder, as plain values for JSON, and the samples behind it by
    suite. `asked` are names of `SUITES`; without, all that the model can be asked are measured, and
    notes say which cannot. Of a language model of Hugging Face that is text alone.

    Raises `UserError` for a folder that is no model, and for a suite that it cannot be asked.
    """
    check_result(check_folder(folder) / "config.json", "model")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != MODEL_TYPE:
        if asked is not None and [*asked] != [TEXT]:
            raise UserError(
                f"--suite: {folder} is a language model without pictures, which can be asked "
                f"{TEXT} alone"
            )
        check_drawing(None, options.drawing)
        samples = {TEXT: language_ability(folder, device, options)}
        notes = [f"{folder} is a language model without pictures: {TEXT} alone was measured"]
        return _report(folder, kind, options, samples, notes), samples
    chat = Assistant.from_pretrained(folder, device, options=_engine(folder), open_when_needed=True)
    check_drawing(chat.decoder, options.drawing)
    unfit = {name: why for name, suite in SUITES.items() if (why := _unfit(chat, suite))}
    for name in asked or ():
        if name in unfit:
            raise UserError(f"--suite: {name} cannot be measured: {folder} {unfit[name]}")
    chosen = [name for name in SUITES if (name not in unfit if asked is None else name in asked)]
    if options.drawing != DEFAULT_DRAWING and not any(SUITES[name].draws for name in chosen):
        raise UserError(
            f"--suite: {', '.join(chosen)} draws nothing, so nothing can be set for drawings"
        )
    samples = {}
    with tqdm(chosen, desc="suites") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            samples[name] = SUITES[name].run(chat, options)
    notes = []
    if asked is None:
        notes += [f"{name} was not measured: {folder} {why}" for name, why in unfit.items()]
        if options.text is None:
            notes.append(f"{TEXT} is of toy scenes in words; --text names another")
    for name in chosen:
        suite = SUITES[name]
        if suite.note is not None and (said := suite.note(chat)):
            notes.append(f"{name}: {said}")
    return _report(folder, kind, options, samples, notes), samples


def _engine(folder: Path) -> EngineOptions:
    """With room for a sample, not for all that the model has positions for: in a cache that would
    be gigabytes, 6 of them for SmolLM2."""
    config = MetaMorphConfig.read(folder)
    longest = MOST_PICTURES * (config.tokens_per_image + 2) + MOST_WORDS
    return EngineOptions(context=min(longest, config.language.max_position_embeddings))


def _unfit(chat: Assistant, suite: Suite) -> str:
    """Why a suite cannot be asked of this model, if so."""
    decoder = chat.decoder
    if suite.draws and decoder is None:
        return "has no decoder/, it cannot draw pixels"
    if suite.noise and decoder is not None and kind_of(decoder) != "diffusion":
        return "draws in one pass: of the same features always the same picture"
    return ""


def _report(
    folder: Path,
    kind: str | None,
    options: Options,
    samples: dict[str, list[Scored]],
    notes: list[str],
) -> dict:
    return {
        "kind": MODELS,
        "model": str(folder),
        "model_type": kind,
        "wording": options.source.name,
        "held_out": describe_split(),
        "count": options.count,
        "drawing": options.drawing.arguments(),
        "text": None if options.text is None else str(options.text),
        "suites": {name: suite_report(name, of, options.seed) for name, of in samples.items()},
        "notes": notes,
    }


def suite_report(name: str, samples: list[Scored], seed: int) -> dict:
    """What a report has of the suite of a name: its measures, and what became of each sample."""
    measures = means(samples, seed)
    if NATS in measures and measures[NATS]["high"] < LARGEST_EXPONENT:
        measures[PERPLEXITY] = perplexity(measures[NATS])
    for measure, chance in (SUITES[name].chance or {}).items():
        if measure in measures:
            measures[measure]["chance"] = chance
    for measure, found in measures.items():
        if SUITES[name].paired and measure.startswith(SUITES[name].paired):
            pairs = [one for one in samples if measure in one.scores]
            better, worse = ([sign * one.scores[measure] > 0 for one in pairs] for sign in (1, -1))
            found["p"] = mcnemar(worse, better, [one.cluster or one.id for one in pairs])
    records = [sample.record() for sample in samples]
    return {"asks": SUITES[name].asks, "measures": measures, "samples": records}


def model_tables(report: dict, samples: dict[str, list[Scored]]) -> list[Table]:
    """One for each suite: a line for each measure, with its 95 % interval, what guessing would
    score, and of paired ways of asking `p`."""
    tables = []
    for name, suite in report["suites"].items():
        right = {measure for of in samples[name] for measure, value in of.scores.items()
                 if isinstance(value, bool)}  # fmt: skip
        lines = [
            _line(measure, found, measure in right or "p" in found)
            for measure, found in suite["measures"].items()
        ]
        tables.append(Table(name, suite["asks"], lines))
    return tables


def _line(measure: str, found: dict, is_share: bool) -> Line:
    sign = "+" if "p" in found else ""
    low, high = (_number(found[key], is_share, sign) for key in ("low", "high"))
    cells = {
        "samples": str(found["count"]),
        "clusters": str(found["clusters"]),
        "mean": f"{_number(found['mean'], is_share, sign)} ({low} to {high})",
        "chance": _number(found["chance"], is_share) if "chance" in found else "",
        "p": f"{found['p']:.3g}" if "p" in found else "",
    }
    return Line(measure, cells, found, is_share, signed="p" in found)


def _number(value: float, is_share: bool, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}%" if is_share else f"{value:{sign}.3f}"


def model_sheet(samples: dict[str, list[Scored]], most: int) -> Image.Image | None:
    """The first drawings of each suite in turn, `most` in all, beside what was to be drawn, with
    what is right in them; None where no suite has drawings to show."""
    drawn = [[one for one in of if one.real is not None] for of in samples.values()]
    in_turn = (one for several in zip_longest(*drawn) for one in several if one is not None)
    entries = [_entry(one) for one in islice(in_turn, most)]
    return contact_sheet(entries) if entries else None


def _entry(one: Scored) -> SheetEntry:
    assert one.real is not None
    right = {name: value for name, value in one.scores.items() if isinstance(value, bool)}
    caption = one.request.replace(IMAGE_PLACEHOLDER, "[picture] ")
    return SheetEntry(caption, one.real, {"drawn": SheetDrawing(one.drawn, right)})
