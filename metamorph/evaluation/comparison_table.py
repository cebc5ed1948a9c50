"""The scores of decoders as tables for people."""

from metamorph.evaluation.checker import ALL_RIGHT, ATTRIBUTES
from metamorph.evaluation.page import Line, Table
from metamorph.evaluation.report import text_table

SOURCES = {  # what a line is of, by its key in the report
    "own": "own features",
    "predicted": "predicted features",
    "original": "the originals",
}
MEASURES = {  # heading: key in the report, and digits
    "cosine": ("cosine", 3),
    "PSNR": ("psnr", 1),
    "SSIM": ("ssim", 3),
    "CLIP": ("clip_score", 1),
}


def comparison_table(report: dict) -> str:
    """What `Comparison.run` found, a line for each decoder and kind of features, with 95 %
    intervals; columns of what was not measured are left out."""
    lines = []
    for found in report["decoders"]:
        lines += [_line(found, source) for source in SOURCES if source in found]
        lines.append(_shuffled(found))
    heads = [*dict.fromkeys(head for line in lines for head in line)]
    return text_table(heads, [[line.get(head, "") for head in heads] for line in lines], names=3)


def comparison_tables(report: dict) -> list[Table]:
    """One for each decoder and kind of features: a line for each measure with an interval."""
    tables = []
    for found in report["decoders"]:
        for source in filter(found.__contains__, SOURCES):
            scores = found[source]
            measured = {
                name: (scores[key], digits, False) for name, (key, digits) in MEASURES.items()
            }
            measured |= {name: (one, 1, True) for name, one in scores["attributes"].items()}
            lines = [
                Line(name, _cells(one, digits, share), one, share)
                for name, (one, digits, share) in measured.items()
                if one is not None
            ]
            about = f"{found['kind']}, {found['tokens_per_image']} tokens a picture"
            tables.append(Table(f"{found['decoder']}, {SOURCES[source]}", about, lines))
    return tables


def _cells(estimate: dict, digits: int, share: bool) -> dict[str, str]:
    return {
        "pictures": str(estimate["count"]),
        "clusters": str(estimate["clusters"]),
        "mean": _interval(estimate, digits, share),
    }


def _line(found: dict, source: str) -> dict[str, str]:
    """Cells by their headings."""
    scores = found[source]
    cells = {
        "decoder": found["decoder"],
        "kind": found["kind"],
        "drawn from": SOURCES[source],
        "tokens": str(found["tokens_per_image"]),
    }
    for head, (key, digits) in MEASURES.items():
        if scores[key] is not None:
            cells[head] = _interval(scores[key], digits)
        elif key == "psnr" and scores["identical"]:
            cells[head] = "identical"
    if scores["fid"] is not None:
        cells["FID"] = f"{scores['fid']:.1f}"
    if right := scores["attributes"]:
        cells |= {name: f"{right[name]['mean']:.1%}" for name in ATTRIBUTES}
        cells[ALL_RIGHT] = _interval(right[ALL_RIGHT], 1, percent=True)
    if scores["undrawn"]:
        cells["undrawn"] = str(scores["undrawn"])
    if scores["seconds_per_picture"] is not None:
        cells["s/picture"] = f"{scores['seconds_per_picture']:.3f}"
    return cells


def _shuffled(found: dict) -> dict[str, str]:
    """The floor: drawings beside pictures that they are not of."""
    cosine = found["own"]["shuffled_cosine"]
    return {
        "decoder": found["decoder"],
        "kind": found["kind"],
        "drawn from": "own features, shuffled",
        "tokens": str(found["tokens_per_image"]),
        **({"cosine": _interval(cosine, 3)} if cosine else {}),
    }


def _interval(estimate: dict, digits: int, percent: bool = False) -> str:
    scale, sign = (100, "%") if percent else (1, "")
    mean, low, high = (f"{scale * estimate[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean}{sign} ({low} to {high})"
