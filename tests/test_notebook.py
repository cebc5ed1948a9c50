"""examples/notebook: every cell runs in its order, in the notebook's folder, on a tiny model."""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").rglob("*.ipynb"))


def cells(notebook: Path, kind: str) -> dict[str, str]:
    """The text of the cells of a kind, by their ids."""
    found = json.loads(notebook.read_text())["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in found if cell["cell_type"] == kind}


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """What a notebook shows under a cell: the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return None


@pytest.fixture
def shown(page_folder, tmp_path, monkeypatch) -> dict[str, Any]:
    """What each cell shows, by its id."""
    shutil.copytree(page_folder / "runs", tmp_path / "runs")
    folder = tmp_path / "examples/notebook"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    [notebook] = NOTEBOOKS
    return {name: run_cell(source, names) for name, source in cells(notebook, "code").items()}


def test_the_notebook_draws_asks_and_shows_what_is_seen(shown):
    assert shown["open"] == "a picture is 64 visual tokens of 24 numbers"
    for name in ("draw", "edit", "see"):
        assert isinstance(shown[name], Image.Image) and shown[name].size == (64, 64)
    assert isinstance(shown["ask"], str)
    figure = plt.gcf()
    [left, right, bar] = figure.axes
    assert left.get_title() == "drawn" and right.get_images()[0].get_array().shape == (8, 8)
    plt.close(figure)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stripped_and_a_cell_explains_each(notebook):
    page = json.loads(notebook.read_text())
    assert (page["nbformat"], page["nbformat_minor"]) == (4, 5)
    kinds = [cell["cell_type"] for cell in page["cells"]]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2)
    for cell in page["cells"]:
        assert re.fullmatch(r"[\w-]{1,64}", cell["id"]) and cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
