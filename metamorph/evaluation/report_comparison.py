"""Reports of models side by side: a paired test on the samples that all of them have."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from metamorph.errors import UserError, shown, within
from metamorph.evaluation.page import Line, Table
from metamorph.evaluation.paired_tests import mcnemar, paired_difference
from metamorph.evaluation.report import MODELS
from metamorph.folders import check_file

ALIKE = ("seed", "wording")  # what has to be the same in all reports
# And of each sample: of many questions the request is the same, and only the answer tells which.
ALIKE_IN_SAMPLES = ("request", "expected", "weight", "cluster")
Samples = dict[str, dict]  # of a suite, by id


def compare(
    first: Sequence[Path], second: Sequence[Path], suites: Sequence[str] | None = None
) -> tuple[list[Table], list[str]]:
    """Tables of how the models of `second` differ from those of `first`, by suite, and notes of
    what was left out.

    More than one report a side are of several trainings of the same kind, whose means are compared.
    `suites` are those to compare (default: all, which all reports have to have). Raises `UserError`
    for a file that is no such report, and for reports that cannot be compared.
    """
    reports = {path: read_report(path) for path in (*first, *second)}
    _check_alike(reports)
    chosen = _chosen(reports, suites)
    tables, notes = [], []
    for suite in chosen:
        samples = {path: _samples(path, report, suite) for path, report in reports.items()}
        empty = [path for path, of in samples.items() if not of]
        if empty:  # as of drawings, where a model draws none
            notes.append(f"{suite}: not compared, {empty[0]} has no sample of it")
            continue
        common = _common(samples)
        if not common:
            raise UserError(f"suite {suite}: the reports have no sample in common")
        if any(len(of) > len(common) for of in samples.values()):
            most = max(map(len, samples.values()))
            notes.append(f"{suite}: compared on the {len(common)} of {most} samples that all have")
        _check_same(suite, samples, common)
        about = f"{len(common)} samples that all reports have"
        lines = _lines([samples[p] for p in first], [samples[p] for p in second], common)
        tables.append(Table(suite, about, lines))
    if len({json.dumps(report.get("drawing")) for report in reports.values()}) > 1:
        notes.append("drawn by different settings, which each report has as drawing")
    if len(first) + len(second) > 2:
        notes.append(
            f"first is the mean of {len(first)} trainings, second of {len(second)}: the intervals "
            f"are over trainings and samples, too narrow for very few trainings"
        )
    return tables, notes


def read_report(path: Path) -> dict:
    """The evaluation.json of a model, checked. Raises `UserError` for another file."""
    check_file(path, "the evaluation.json of a model")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    kind = report.get("kind") if isinstance(report, dict) else None
    if kind != MODELS:
        of = "decoders" if isinstance(report, dict) and "decoders" in report else "something else"
        raise UserError(
            f"{path} is a report of {of}, expected one that metamorph evaluate --model wrote "
            f"without --decoder"
        )
    with within(path):
        _check_form(report)
    return report


def _check_form(report: dict) -> None:
    """Raises `UserError` unless all that is read of it later is there."""
    suites = report.get("suites")
    if not isinstance(suites, dict) or not suites:
        raise UserError("suites: expected the suites by their names")
    for name, suite in suites.items():
        samples = suite.get("samples") if isinstance(suite, dict) else None
        if not isinstance(samples, list) or not all(map(_is_sample, samples)):
            raise UserError(
                f"suite {name}: expected samples with id, request and finite scores, any weights "
                f"above 0 and any cluster by its name"
            )


def _is_sample(sample: object) -> bool:
    return (
        isinstance(sample, dict)
        and isinstance(sample.get("id"), str)
        and isinstance(sample.get("request"), str)
        and isinstance(sample.get("cluster", ""), str)
        and isinstance(scores := sample.get("scores"), dict)
        and all(map(_is_finite, scores.values()))
        and _is_finite(weight := sample.get("weight", 1))
        and weight > 0
    )


def _is_finite(value: object) -> bool:
    """Is it a number that a float can hold?"""
    most = sys.float_info.max
    return isinstance(value, bool | int | float) and -most <= value <= most


def _check_alike(reports: dict[Path, dict]) -> None:
    first, *others = reports
    for path in others:
        for key in ALIKE:
            one, other = reports[first].get(key), reports[path].get(key)
            if one != other:
                raise UserError(
                    f"{key}: it is {shown(one)} in {first} and {shown(other)} in {path}, and only "
                    f"equal ones ask and draw alike"
                )


def _chosen(reports: dict[Path, dict], suites: Sequence[str] | None) -> list[str]:
    first, *others = reports
    named = [*(suites or ())]
    for path, report in reports.items():
        for name in named:
            if named.count(name) > 1:
                raise UserError(f"--suite: {name} stands twice")
            if name not in report["suites"]:
                raise UserError(
                    f"--suite: {path} has no {name}, it has {', '.join(report['suites'])}"
                )
    for path in others if suites is None else ():
        differing = reports[first]["suites"].keys() ^ reports[path]["suites"].keys()
        if differing:
            raise UserError(
                f"only one of {first} and {path} has {', '.join(sorted(differing))}; --suite names "
                f"what to compare"
            )
    return [*reports[first]["suites"]] if suites is None else named


def _samples(path: Path, report: dict, suite: str) -> Samples:
    samples = report["suites"][suite]["samples"]
    by_id = {sample["id"]: sample for sample in samples}
    if len(by_id) < len(samples):
        raise UserError(f"{path}: suite {suite}: a sample stands twice in it")
    return by_id


def _common(samples: dict[Path, Samples]) -> list[str]:
    """Ids that all have, in the order of the first."""
    first, *others = samples.values()
    return [name for name in first if all(name in other for other in others)]


def _check_same(suite: str, samples: dict[Path, Samples], common: Sequence[str]) -> None:
    first, *others = samples
    for path in others:
        for name in common:
            for what in ALIKE_IN_SAMPLES:
                one, other = samples[first][name].get(what), samples[path][name].get(what)
                if one != other:
                    raise UserError(
                        f"suite {suite}: sample {name} has the {what} {shown(one)} in {first} and "
                        f"{shown(other)} in {path}"
                    )


def _lines(
    first: Sequence[Samples], second: Sequence[Samples], common: Sequence[str]
) -> list[Line]:
    """A line for each measure that some samples have in all reports."""
    sides, lines = (*first, *second), []
    names = dict.fromkeys(name for sample in first[0].values() for name in sample["scores"])
    for name in names:
        ids = [one for one in common if all(name in side[one]["scores"] for side in sides)]
        if not ids:
            continue
        values = [[side[one]["scores"][name] for one in ids] for side in sides]
        weights = np.array([sides[0][one].get("weight", 1) for one in ids], np.float64)
        clusters = [sides[0][one].get("cluster", one) for one in ids]
        is_right = all(isinstance(value, bool) for of in values for value in of)
        scores = np.array(values, np.float64)  # [trainings of both, samples]
        before, after = scores[: len(first)], scores[len(first) :]
        p = f"{mcnemar(values[0], values[1], clusters):.3g}" if is_right and len(sides) == 2 else ""
        difference = paired_difference(before, after, weights, clusters)
        means = (float(np.average(of.mean(0), weights=weights)) for of in (before, after))
        number = partial(_number, percent=is_right)
        low, high = number(difference.low, "+"), number(difference.high, "+")
        cells = {
            "samples": str(difference.count),
            "clusters": str(difference.clusters),
            **dict(zip(("first", "second"), map(number, means), strict=True)),
            "second - first": f"{number(difference.mean, '+')} ({low} to {high})",
            "p": p,
        }
        lines.append(Line(name, cells, asdict(difference), is_right, signed=True))
    return lines


def _number(value: float, sign: str = "", *, percent: bool) -> str:
    return f"{100 * value:{sign}.1f}%" if percent else f"{value:{sign}.3f}"
