"""The report of a run as one HTML page that needs nothing beside itself."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from metamorph.evaluation.checker import CHANCE
from metamorph.monitor.metrics_file import read_metrics
from metamorph.static_page.page import page_templates

FIRST_QUESTIONS = 16  # shown at once; the others are folded
ENLARGEMENT = 2  # of the pictures in the table
STAGE_TEXTS = {
    "language": "The language model learns to speak about the toy world, from text alone.",
    "align": "The projector learns to show pictures to the language model, which stays as it is.",
    "instruct": "Visual-predictive instruction tuning: words and visual features are both learned.",
    "decoder": "The diffusion base learns to follow visual features.",
}
# Inline SVG takes the page's colours: matplotlib draws with stand-ins that are then replaced.
INK, GRID, MODEL, BASELINE = "#010101", "#020202", "#030303", "#040404"
PAGE_COLOURS = {
    INK: "var(--muted)",
    GRID: "var(--line)",
    MODEL: "var(--accent)",
    BASELINE: "var(--baseline)",
}


@dataclass(frozen=True)
class AnsweredQuestion:
    """A held-out question, what the model said and what is right."""

    image: Image.Image
    question: str
    answer: str
    expected: str

    @property
    def is_right(self) -> bool:
        return self.answer == self.expected


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    key: str  # in metrics.jsonl
    label: str
    colour: str


@dataclass(frozen=True)
class Chart:
    title: str
    lines: tuple[Line, ...]
    top: float | None = None  # of the y axis; None fits the data


CHARTS = (
    Chart("Text loss (nats)", (Line("text_loss", "text loss", MODEL),)),
    Chart(
        "Visual cosine",
        (
            Line("visual_cosine", "model", MODEL),
            Line("mean_baseline_cosine", "always predicting the mean", BASELINE),
        ),
        top=1.0,
    ),
    Chart("Denoising loss", (Line("denoising_loss", "denoising loss", MODEL),)),
)


def write_report(
    folder: Path,
    report: dict,
    stages: dict[str, Path],
    answers: list[AnsweredQuestion],
    sheet_path: Path,
) -> Path:
    """Writes `folder/report.html` and returns its path.

    Args:
        report: the measured figures, as in `report.json`.
        stages: run folders by stage, in the order of training; their `metrics.jsonl` is drawn.
        answers: questions to show; `report["questions"]` may count more.
        sheet_path: the contact sheet, any format that Pillow reads.
    """
    environment = page_templates(Path(__file__).parent)
    environment.filters["shares"] = _shares
    drawings = report["drawings"]  # by decoder, then by kind
    with Image.open(sheet_path) as sheet:
        page = environment.get_template("report.html.jinja").render(
            report=report,
            chance=CHANCE,
            captions={decoder: by_kind["captions"] for decoder, by_kind in drawings.items()},
            kinds=[*next(iter(drawings.values()))],
            stages=[_stage(name, folder) for name, folder in stages.items()],
            answers=answers,
            first_questions=FIRST_QUESTIONS,
            enlargement=ENLARGEMENT,
            sheet=sheet,
        )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _shares(drawn: dict) -> dict[str, float]:
    """Each attribute's share of right drawings."""
    return {name: right / drawn["drawings"] for name, right in drawn["attributes"].items()}


def _stage(name: str, folder: Path) -> dict:
    metrics = read_metrics(folder)
    charts = [
        {"title": chart.title, "svg": svg}
        for number, chart in enumerate(CHARTS)
        if (svg := draw_chart(chart, metrics, f"{name}-{number}"))
    ]
    steps = metrics[-1]["step"] if metrics else 0
    return {"name": name, "text": STAGE_TEXTS.get(name, ""), "steps": steps, "charts": charts}


def draw_chart(chart: Chart, metrics: list[dict], prefix: str) -> Markup | None:
    """The chart as inline SVG, or `None` if the run measured none of its lines.

    `prefix` starts every id: several drawings share one page.
    """
    curves = [
        (line, [(m["step"], m[line.key]) for m in metrics if m.get(line.key) is not None])
        for line in chart.lines
    ]
    curves = [(line, points) for line, points in curves if points]
    if not curves:
        return None
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "grid.color": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(4.6, 2.1), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        for line, points in curves:
            steps, values = zip(*points, strict=True)
            dot = "o" if len(points) == 1 else None
            axes.plot(steps, values, color=line.colour, label=line.label, linewidth=1.8, marker=dot)
        lowest = min(value for _, points in curves for _, value in points)
        axes.set_ylim(min(lowest, 0), chart.top)
        axes.set_xlabel("step", color=INK)
        if len(curves) > 1:
            axes.legend(loc="lower right", frameon=False)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), prefix)


def _inline(svg: str, prefix: str) -> Markup:
    """Makes a matplotlib file a part of the page: its colours and font, no ids in common."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would apply to the whole page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg)  # the viewBox scales it
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"\bfont: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return Markup(svg)
