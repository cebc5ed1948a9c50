"""The page of an evaluation shows what was measured, and needs nothing beside itself."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from metamorph.evaluation.page import PAGE, Line, Table, in_text, write_page

RIGHT = {"mean": 0.75, "low": 0.5, "high": 1.0, "chance": 0.25}
LESS = {"mean": -0.1, "low": -0.4, "high": 0.2}
NATS = {"mean": 2.0, "low": 1.0, "high": 4.0}
LINES = [
    Line("right", {"samples": "8", "mean": "75.0%"}, RIGHT, share=True),
    Line("inferred - scrambled", {"samples": "4", "mean": "-10.0%"}, LESS, share=True, signed=True),
    Line("nats <per> token", {"samples": "2", "mean": "2.000"}, NATS, share=False),
]
REPORT = {
    "command": "metamorph evaluate --model 'a & <b>'",
    "seed": 3,
    "device": "cpu",
    "versions": {"python": "3.11.2", "torch": "2.9.0"},
}


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path) -> str:
    tables = [Table("questions <script>", "about a picture", LINES), Table("empty", "", [])]
    sheet = Image.new("RGB", (8, 8), "red")
    write_page(tmp_path, "A <model>", "lead", tables, ["a < b"], REPORT, sheet)
    return (tmp_path / PAGE).read_text()


def test_it_says_what_was_measured_and_how(page):
    text = Elements(page).text
    for said in ("A <model>", "questions <script>", "75.0%", "nats <per> token", "a < b",
                 "metamorph evaluate --model 'a & <b>'", "2.9.0", "cpu"):  # fmt: skip
        assert said in text, said
    assert "empty" not in text


def test_nothing_comes_from_elsewhere_and_nothing_runs(page):
    tags = Elements(page).found
    assert not {tag for tag, _ in tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "model",
        "b",
        "per",
    }
    sources = [value for _, of in tags for name, value in of.items() if name in ("src", "href")]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    assert "url(" not in page and "@import" not in page and "http" not in page


def test_bars_are_drawn_where_the_values_lie(page):
    drawn = [of for tag, of in Elements(page).found if tag == "line"]
    places = [(of["class"], float(of["x1"]), float(of["x2"])) for of in drawn]
    assert places == [
        ("zero", 0, 0), ("range", 50, 100), ("mean", 75, 75), ("guess", 25, 25),  # of all shares
        ("zero", 50, 50), ("range", 30, 60), ("mean", 45, 45),  # from -1 to 1
        ("zero", 0, 0), ("range", 25, 100), ("mean", 50, 50),  # from 0 to 4
    ]  # fmt: skip


def test_who_is_worse_than_guessing_is_drawn_within_the_bar():
    ranks = {"mean": 0.03, "low": 0.02, "high": 0.05, "chance": 0.1}
    line = Line("reciprocal rank", {}, ranks, share=False)
    assert [line.at(key) for key in ranks] == [30, 20, 50, 100]


def test_a_line_that_is_always_the_same_is_drawn_too():
    line = Line("perplexity", {}, {"mean": 0.0, "low": 0.0, "high": 0.0}, share=False)
    assert (line.zero, line.at("mean")) == (0, 0)


def test_the_terminal_has_the_same_cells():
    assert in_text([Table("questions", "", LINES[:1])]).split() == [
        "suite", "measure", "samples", "mean", "questions", "right", "8", "75.0%",
    ]  # fmt: skip
    assert in_text([]) == "suite  measure"


def test_a_phone_has_one_column(page):
    assert re.search(r"@media \(max-width: 560px\) \{.*\.scores thead \{ display: none", page, re.S)
    assert 'name="viewport"' in page
