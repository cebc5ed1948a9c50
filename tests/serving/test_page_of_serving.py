"""docs/serving.md says what is so."""

import re

from metamorph.cli.serve import LIMITS
from metamorph.serving.limits import DEFAULT_LIMITS
from tests.pages import ROOT, blocks
from tests.serving.running import running
from tests.serving.scripted import scripted_served
from tests.serving.scripted_server import client_of, scripted_app

PAGE = ROOT / "docs/serving.md"
TEXT = PAGE.read_text()


def test_its_program_runs_against_a_server():
    [program] = blocks(PAGE, "py")
    assert "http://127.0.0.1:8000" in program
    with running(scripted_app(served=scripted_served(name="metamorph"))) as url:
        exec(compile(program.replace("http://127.0.0.1:8000", url), PAGE, "exec"), {})


def test_its_limits_are_the_defaults():
    table = TEXT.split("## Limits")[1].split("## ")[0]
    rows = re.findall(r"^\| (`--.*) \| .* \| ([\d, ]+) \|$", table, re.MULTILINE)
    said = {
        option: value
        for options, values in rows
        for option, value in zip(
            re.findall(r"`(--[\w-]+)`", options), values.split(", "), strict=True
        )
    }
    for field, option, *_ in LIMITS:
        assert float(said[option]) == getattr(DEFAULT_LIMITS, field), option


def test_its_metrics_and_routes_are_there():
    with client_of(scripted_app()) as client:
        metrics = client.get("/metrics").text
        for name in re.findall(r"`(metamorph_\w+)", TEXT.split("## Metrics")[1].split("## ")[0]):
            assert name in metrics, name
        routes = client.get("/v1/openapi.json").json()["paths"]
    named = re.findall(r"`(?:POST|GET) (/v1/[\w/]+)`", TEXT)
    assert {route for route in routes if route.startswith("/v1/") and "{" not in route} == set(
        named
    )
    assert scripted_served().image_prompt == "Generate an image of {prompt}."
    assert "*Generate an image of\n{prompt}.*" in TEXT
