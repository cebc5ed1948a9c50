"""The report page and the contact sheet show what was measured, and need nothing beside them."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from metamorph.data.toy.scenes import Scene, caption, render
from metamorph.evaluation.checker import ATTRIBUTES, CHANCE
from metamorph.evaluation.contact_sheet import SheetDrawing, SheetEntry, contact_sheet
from metamorph.quickstart.report import FIRST_QUESTIONS, AnsweredQuestion, write_report
from metamorph.static_page.page import duration, percent

SCENE = Scene("square", "yellow", "large", "top left")
REPORT = {
    "question_accuracy": 0.9567,
    "question_accuracy_by_attribute": {"colour": 0.9312, "count": 0.8765},
    "questions_right": 307,
    "drawings": {
        "diffusion": {
            "captions": {
                "example": "Generate an image of a large yellow square at the top left.",
                "drawings": 123,
                "all_right": 58,
                "attributes": {"colour": 119, "shape": 67, "size": 102, "place": 111},
                "mean_of_attributes": 399 / 492,
            },
            "edits": {
                "example": "[picture] Make the square red.",
                "drawings": 50,
                "all_right": 37,
                "attributes": {"colour": 41, "shape": 45, "size": 50, "place": 49},
                "mean_of_attributes": 185 / 200,
            },
        },
        "one pass": {
            "captions": {
                "example": "Generate an image of a large yellow square at the top left.",
                "drawings": 123,
                "all_right": 99,
                "attributes": {"colour": 120, "shape": 118, "size": 117, "place": 100},
                "mean_of_attributes": 455 / 492,
            },
            "edits": {
                "example": "[picture] Make the square red.",
                "drawings": 50,
                "all_right": 43,
                "attributes": {"colour": 44, "shape": 46, "size": 48, "place": 47},
                "mean_of_attributes": 185 / 200,
            },
        },
    },
    "checker_accuracy": 0.9987,
    "visual_cosine": 0.91342,
    "mean_baseline_cosine": 0.78119,
    "seconds": 492.3,
    "seconds_by_stage": {"instruct": 231.0, "drawing": 33.0},
    "versions": {"torch": "2.13.0+cpu", "python": "3.11.9"},
    "held_out": "purple circle, yellow square",
    "questions": 321,
    "other_questions": {"motion": {"questions": 43, "right": 31}},
}


class Page(HTMLParser):
    """The text, the elements and the addresses of a page."""

    ADDRESSES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}
    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.texts, self.elements, self.addresses, self.open, self.ids = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [v for name, v in attributes if name in self.ADDRESSES]
        self.ids += [v for name, v in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def write_metrics(folder, lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def stages(tmp_path):
    language = [{"step": s, "text_loss": 3 / s, "visual_cosine": None} for s in (5, 10, 20)]
    instruct = [
        {"step": s, "text_loss": 2 / s, "visual_cosine": 0.5, "mean_baseline_cosine": 0.4}
        for s in (10, 450)
    ]
    decoder = [{"step": 400, "denoising_loss": 0.2}]
    return {
        "language": write_metrics(tmp_path / "language", language),
        "instruct": write_metrics(tmp_path / "instruct", instruct),
        "decoder": write_metrics(tmp_path / "decoder", decoder),
    }


def entry(text: str = "") -> SheetEntry:
    right = dict.fromkeys(ATTRIBUTES, True) | {"shape": False}
    drawings = {"diffusion": SheetDrawing(render(SCENE), right), "one pass": SheetDrawing(None)}
    return SheetEntry(text or caption(SCENE), render(SCENE), drawings)


def make_page(tmp_path, stages, answers, report=REPORT) -> tuple[str, Page]:
    sheet_path = tmp_path / "samples.png"
    contact_sheet([entry()]).save(sheet_path)
    path = write_report(tmp_path, report, stages, answers, sheet_path)
    assert path == tmp_path / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []  # every element is closed
    return html, page


def answered(answer: str, expected: str = "yellow") -> AnsweredQuestion:
    return AnsweredQuestion(render(SCENE), "What colour is the shape?", answer, expected)


def test_shows_the_measured_figures(tmp_path, stages):
    _, page = make_page(tmp_path, stages, [answered("yellow")])
    figures = ["95.7%", "93.1%", "87.6%", "81.1%", "96.7%", "54.5%", "82.9%", "90.2%", "99.9%"]
    figures += ["0.913", "0.781", "8 min 12 s", "3 min 51 s", "33 s", "307 of 321"]
    figures += ["47.2%", "58 of 123", "74% (37 of 50)", "92.5%", "colour 41, shape 45"]
    figures += ["80.5%", "99 of 123", "92.5%", "86% (43 of 50)", "colour 44, shape 46"]
    figures += ["motion 72.1% (31 of 43)"]
    figures += ["2.13.0+cpu", "3.11.9", "purple circle, yellow square", "450 steps"]
    figures += [f"chance {percent(CHANCE[name])}" for name in ATTRIBUTES]
    for figure in figures:
        assert figure in page.text, figure


def test_figures_are_not_constants(tmp_path, stages):
    first, _ = make_page(tmp_path, stages, [])
    second, page = make_page(tmp_path, stages, [], REPORT | {"question_accuracy": 0.1234})
    assert "95.7%" in first and "95.7%" not in second
    assert "12.3%" in page.text


def test_draws_what_each_stage_measured(tmp_path, stages):
    _, page = make_page(tmp_path, stages, [])
    assert page.elements.count("svg") == 4  # two text losses, one cosine, one denoising loss
    assert "always predicting the mean" in page.text
    assert page.text.count("Text loss (nats)") == 2
    assert page.text.count("Denoising loss") == 1
    assert len(page.ids) == len(set(page.ids))


def test_needs_nothing_from_outside(tmp_path, stages):
    html, page = make_page(tmp_path, stages, [answered("yellow")])
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|<script", without_pictures)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"url\((?!#)", html)


def test_escapes_all_text(tmp_path, stages):
    attack = '<script>alert("x")</script>'
    report = REPORT | {"held_out": attack, "versions": {attack: attack}}
    report |= {"question_accuracy_by_attribute": {attack: 0.5}}
    drawings = REPORT["drawings"]["diffusion"]
    attacked = drawings["edits"] | {"example": attack, "attributes": {attack: 1}}
    report["drawings"] = {attack: drawings | {attack: attacked}}
    answers = [AnsweredQuestion(render(SCENE), attack, attack, attack)]
    html, page = make_page(tmp_path, stages, answers, report)
    assert "script" not in page.elements
    assert attack not in html
    assert page.text.count(attack) == 15


def test_marks_right_and_wrong_answers(tmp_path, stages):
    _, page = make_page(tmp_path, stages, [answered("yellow"), answered("Yellow"), answered("")])
    assert (page.text.count("✓"), page.text.count("✗")) == (1, 2)
    assert "(nothing)" in page.text


def test_folds_long_tables_without_losing_rows(tmp_path, stages):
    answers = [answered(f"answer-{i}") for i in range(FIRST_QUESTIONS + 5)]
    _, page = make_page(tmp_path, stages, answers)
    assert "Show 5 more" in page.text
    assert len(re.findall(r"answer-\d+", page.text)) == len(answers)


def test_page_is_the_same_twice(tmp_path, stages):
    answers = [answered("yellow")]
    assert make_page(tmp_path, stages, answers)[0] == make_page(tmp_path, stages, answers)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.97, "10 s"),
        (59.7, "1 min 0 s"),
        (600, "10 min 0 s"),
        (3599.6, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (7170, "2 h 0 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_long_time_stays_in_its_card(tmp_path, stages):
    """It may break into lines, and its longest word is no longer than any other figure's."""
    html, page = make_page(tmp_path, stages, [], REPORT | {"seconds": 359_999})
    [rule] = re.findall(r"^\.tile \.number \{(.*)\}$", html, re.MULTILINE)
    assert "nowrap" not in rule and "overflow-wrap: anywhere" in rule
    assert "100 h 0 min" in page.text


def test_sheet_grows_with_entries():
    sizes = [contact_sheet([entry()] * count, columns=3).size for count in (1, 2, 3, 4, 7)]
    widths, heights = zip(*sizes, strict=True)
    assert widths[0] < widths[1] < widths[2] == widths[3] == widths[4]
    assert heights[0] == heights[1] == heights[2] < heights[3] < heights[4]


def test_sheet_wraps_long_captions_and_words():
    short = contact_sheet([entry()])
    long = contact_sheet([entry("many words " * 20 + "x" * 300)])
    assert long.width == short.width and long.height > short.height


def test_sheet_shows_all_pictures_and_marks():
    plain = Image.new("RGB", (64, 64), "white")
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    blue = Image.new("RGB", (64, 64), (0, 0, 255))
    green = Image.new("RGB", (64, 64), (0, 255, 0))

    def pixels(sheet: Image.Image, colour) -> int:
        return dict((c, n) for n, c in sheet.getcolors(1 << 20)).get(colour, 0)

    drawings = {"one": SheetDrawing(blue, {"shape": True}), "other": SheetDrawing(green)}
    sheet = contact_sheet([SheetEntry("a", red, drawings)])
    counts = {pixels(sheet, colour) for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0))}
    assert len(counts) == 1 and counts.pop() > 150**2

    def marked(*right: bool) -> Image.Image:
        drawings = {str(n): SheetDrawing(plain, {"shape": r}) for n, r in enumerate(right)}
        return contact_sheet([SheetEntry("a", plain, drawings)])

    assert marked(True, False).size == marked(False, True).size
    assert len({marked(a, b).tobytes() for a in (True, False) for b in (True, False)}) == 4


def test_sheet_takes_a_missing_drawing():
    nothing = {name: SheetDrawing(None, drawn.right) for name, drawn in entry().drawings.items()}
    missing = SheetEntry(caption(SCENE), render(SCENE), nothing)
    assert contact_sheet([missing]).size == contact_sheet([entry()]).size


@pytest.mark.parametrize(
    ("entries", "columns"),
    [
        ([], 3),
        ([entry()], 0),
        ([SheetEntry("", render(SCENE), {})], 3),
        ([entry(), SheetEntry("", render(SCENE), {"other": SheetDrawing(None)})], 3),
    ],
)
def test_sheet_refuses_what_it_cannot_show(entries, columns):
    with pytest.raises(ValueError, match="at least"):
        contact_sheet(entries, columns)
