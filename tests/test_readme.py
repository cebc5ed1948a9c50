"""The code of the README and of the how-to pages runs as it stands, and what they link exists."""

import inspect
import json
import re
import shutil

import pytest

import metamorph_kernels
from metamorph.quickstart.run import scores
from tests.pages import PAGES, ROOT, blocks, title

BLOCKS = [
    pytest.param(block, title(page), id=f"{title(page)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"))
]
RUN_BY_OTHER_TESTS = {
    "docs/data.md",
    "docs/drawing.md",
    "docs/one_pass.md",
    "docs/serving.md",
}  # by tests of their folders
NAMED = r"`((?:bench|configs|csrc|docs|kernels|metamorph|tests)/[\w./*-]+)`"


def test_there_is_code_to_check():
    pages = {block.values[1] for block in BLOCKS}
    assert pages >= {"README.md", "kernels/README.md", "docs/transformers.md"}
    assert {title(page) for page in PAGES if blocks(page, "py")} == RUN_BY_OTHER_TESTS


@pytest.mark.parametrize(("block", "page"), BLOCKS)
def test_python_blocks_run(block, page, page_folder, tmp_path, monkeypatch):
    shutil.copytree(page_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {})


def test_every_public_op_has_an_example_and_a_line():
    page = ROOT / "kernels/README.md"
    [example] = blocks(page, "python")
    listed = set(re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE))
    lower = [name for name in metamorph_kernels.__all__ if name.islower()]
    functions = {name: inspect.signature(getattr(metamorph_kernels, name)) for name in lower}
    ops = {name for name, signature in functions.items() if "impl" in signature.parameters}
    assert listed == ops | {"key_intervals", "intervals_from_rows", "prefill_row"}
    for name in listed:
        assert f"{name}(" in example, f"kernels/README.md shows no example of {name}"


def test_the_scores_are_those_of_the_recorded_run():
    """After a quickstart: copy its report.json to docs/quickstart.json, samples.png to
    docs/images/quickstart.png, and its first lines to the README."""
    recorded = json.loads((ROOT / "docs/quickstart.json").read_text())
    assert scores(recorded) in blocks(ROOT / "README.md", "")[0]
    assert f"took {recorded['seconds'] / 60:.0f} minutes" in (ROOT / "README.md").read_text()


def anchors(page) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_named_files_exist(page):
    for name in re.findall(NAMED, page.read_text()):
        written = name.startswith(("bench/out", "docs/results"))  # by the benchmarks
        inside = ROOT / "kernels" / name  # kernels/ is the source root of its package
        assert written or any(ROOT.glob(name)) or inside.exists(), name
