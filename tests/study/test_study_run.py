"""A study goes on where it was stopped, and comes to the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from metamorph.cli.command import main
from metamorph.disk import is_running
from metamorph.errors import Halted, UserError
from metamorph.study import run as study_module
from metamorph.study.figures import figures
from metamorph.study.listing import listing
from metamorph.study.plan import Plan, Records
from metamorph.study.scale import FULL, SMOKE
from tests.study import fake_training

ROOT = Path(__file__).parents[2]
FIGURES = "f1", "f3", "f4", "f5"
PROGRAM = """
import sys
from tests.study import fake_training
sys.modules["metamorph.study.measuring"] = fake_training
from metamorph.cli.command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def fake(monkeypatch):
    """Trainings that take no time."""
    for name in ("train_start", "train_cell"):
        monkeypatch.setattr(study_module, name, getattr(fake_training, name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a study that nothing stopped."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train_start", "train_cell"):
            patch.setattr(study_module, name, getattr(fake_training, name))
        study_module.study(output, Plan.of(FIGURES, 3, SMOKE), jobs=2)
    return output


def found(output: Path) -> dict:
    return json.loads((output / "study.json").read_text())["figures"]


def stopped(output: Path, number: signal.Signals) -> subprocess.CompletedProcess:
    """A study of a process of its own, to which a signal came after three trainings; its own
    processes ended with it."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    options = f"--smoke --figure {','.join(FIGURES)} --seeds 3 --jobs 2 --output".split()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "study", *options, str(output)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len([*output.glob("records/*.json")]) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while any(is_running(int(child)) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to"])
def test_one_that_was_stopped_goes_on_and_comes_to_the_same(number, fake, whole, tmp_path):
    plan, output = Plan.of(FIGURES, 3, SMOKE), tmp_path / "stopped"
    result = stopped(output, number)
    records = output / "records"
    early = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 3 <= len(early) < len(plan.trainings)
    if number == signal.SIGTERM:
        told = f"metamorph: stopped with {len(early)} of {len(plan.trainings)} trainings done; "
        assert result.stderr.endswith(f"{told}the same command goes on\n")
        assert result.returncode == 130

    study_module.study(output, plan, jobs=2)
    assert found(output) == found(whole)
    assert (output / "tables.md").read_text() == (whole / "tables.md").read_text()
    assert all((records / name).stat().st_mtime_ns == when for name, when in early.items())


def test_everything_is_written(fake, whole, capsys):
    plan = Plan.of(FIGURES, 3, SMOKE)
    assert len([*(whole / "records").iterdir()]) == len(plan.trainings)
    assert set(found(whole)) == set(FIGURES)
    for name in FIGURES:
        assert Image.open(whole / f"{name}.png").width > 500
        figure = found(whole)[name]
        assert figure["trainings"]["done"] == figure["trainings"]["of"]
        for point in figure["points"]:
            assert all(len(spread["values"]) == 3 for spread in point["scores"].values())
        assert all(each["verdict"] for each in figure["claims"])
    tables = (whole / "tables.md").read_text()
    assert all(f"## {name.upper()}. " in tables for name in FIGURES)
    records = study_module.study(whole, plan, jobs=1)  # of which nothing is left to train
    assert capsys.readouterr().out == "" and len(records.done) == len(plan.trainings)
    assert "f5   unclear at this scale cosine answers" in study_module.summary(whole, records)


def test_progress_is_told(fake, tmp_path, capsys):
    study_module.study(tmp_path, Plan.of(["f6"], 1, SMOKE), jobs=1)
    first, start, one, two = capsys.readouterr().out.splitlines()
    assert first == "2 trainings to do, 1 starts before"
    assert start == "start seed-0.grid-4.causal is there"
    assert one.startswith("1/2 zoom-20.seed-0: questions right ")
    assert two.startswith("2/2 zoom-20.zoom-undrawn.seed-0: questions right ")
    assert two.endswith("about 0 minutes left")


def test_a_process_that_ends_is_said_and_what_is_done_stays(fake, monkeypatch, whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "copy")
    plan = Plan.of(FIGURES, 3, SMOKE)
    lost = [Records(output, plan).path(training) for training in plan.trainings[-2:]]
    for path in lost:
        path.unlink()
    monkeypatch.setattr(study_module, "train_cell", fake_training.end_at_once)
    with pytest.raises(Halted, match="a process of the study ended at once or was killed"):
        study_module.study(output, plan, jobs=2)
    assert [training.name for training in Records(output, plan).left()] == [p.stem for p in lost]


def test_what_is_not_trained_yet_is_said(tmp_path):
    """Tables of a study of which one figure is done, and of another a part."""
    plan = Plan.of(["f3", "f5"], 3, SMOKE)
    records = Records(tmp_path, plan)
    for training in plan.trainings[:4]:
        (tmp_path / "start").mkdir(exist_ok=True)
        asked = training.cell, training.seed, SMOKE
        records.add(training, fake_training.train_cell(tmp_path, tmp_path / "start", *asked))
    study_module.write_results(tmp_path, records)
    [figure, other] = found(tmp_path).values()
    assert figure["trainings"] == {"done": 4, "of": 12}
    spreads = {point["cell"]: point["scores"]["questions right"] for point in figure["points"]}
    first, second, *others = (spreads[cell.name] for cell in plan.figures[0].cells)
    assert (len(first["values"]), len(second["values"])) == (3, 1)
    assert others == [None] * 2
    assert {claim["verdict"] for claim in other["claims"]} == {"no run yet"}
    assert "no value yet" in (tmp_path / "tables.md").read_text()


def test_a_folder_of_another_study_is_left_alone(whole):
    before, other = (whole / "study.json").read_text(), Plan.of(FIGURES, 3, FULL)
    with pytest.raises(UserError, match="another study, of f1, f3, f4, f5, whose trainings have"):
        study_module.study(whole, other, jobs=1)
    with pytest.raises(UserError, match="another study"):
        listing(whole, other, 1)
    assert (whole / "study.json").read_text() == before


def test_figures_and_seeds_are_added_to_those_of_before(whole, tmp_path, fake, capsys):
    """In whatever order they are asked for, what is there is neither lost nor trained again."""
    first, second = tmp_path / "first", tmp_path / "second"
    study_module.study(first, Plan.of(["f5"], 1, SMOKE), jobs=1)
    study_module.study(first, Plan.of(["f1"], 3, SMOKE), jobs=1)
    study_module.study(second, Plan.of(["f5", "f1"], 3, SMOKE), jobs=1)
    assert found(first) == found(second)
    assert list(found(first)) == ["f5", "f1"]
    records = study_module.study(first, Plan.of(["f1"], 1, SMOKE), jobs=1)
    assert not records.left() and len(records.plan.seeds) == 3
    plan = Plan.of(["f3"], 1, SMOKE)
    assert f"{len(records.done)} of " in listing(first, plan, 1)


GRID = Plan.of(["f6"], 2, SMOKE).described()


@pytest.mark.parametrize(
    "grid",
    [
        5, {}, ["f1"],
        GRID | {"figures": [["f6"]]}, GRID | {"figures": "f6"}, GRID | {"cells": []},
        GRID | {"seeds": ["0", "1"]}, GRID | {"seeds": [0, 2]}, GRID | {"seeds": [*range(1000)]},
    ],
)  # fmt: skip
def test_a_file_that_is_called_as_a_study_but_is_none_is_left_alone(tmp_path, grid):
    (tmp_path / "study.json").write_text(json.dumps({"grid": grid}))
    with pytest.raises(UserError, match="holds no study, expected a new folder"):
        study_module.study(tmp_path, Plan.of(["f6"], 1, SMOKE), jobs=1)
    assert json.loads((tmp_path / "study.json").read_text()) == {"grid": grid}


def test_a_study_that_another_version_wrote_is_left_alone(tmp_path):
    """Its figure, of cells that are known, would be lost from the tables."""
    written = json.dumps({"grid": GRID | {"figures": ["f6", "f77"]}})
    (tmp_path / "study.json").write_text(written)
    with pytest.raises(UserError, match="a study of f6, f77, by another version .* is no 'f77'"):
        study_module.study(tmp_path, Plan.of(["f6"], 1, SMOKE), jobs=1)
    assert (tmp_path / "study.json").read_text() == written
    (tmp_path / "study.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="holds no study, expected a new folder"):
        study_module.study(tmp_path, Plan.of(["f6"], 1, SMOKE), jobs=1)


def test_folders_and_names_that_cannot_be_used_are_named(tmp_path, capsys):
    (tmp_path / "thesis.txt").touch()
    command = ["study", "--smoke", "--output", str(tmp_path)]
    assert main(command) == 2
    assert "holds no study, expected a new folder" in capsys.readouterr().err
    assert main([*command, "--figure", "f1,f77"]) == 2
    assert "--figure: there is no 'f77', expected some of f1, f1b" in capsys.readouterr().err
    for nothing in ("", ","):
        assert main([*command, "--figure", nothing]) == 2
        assert "--figure: there is no '', expected some of" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "thesis.txt")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_record_that_is_broken_is_named(whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "copy")
    plan = Plan.of(FIGURES, 3, SMOKE)
    first, second = (Records(output, plan).path(training) for training in plan.trainings[::3][:2])
    sound = json.loads(first.read_text())
    assert sound["scores"].pop("drawings all right")
    without_a_score, other_seed = (
        json.dumps(sound),
        first.read_text().replace('"seed": 0', '"seed": 1'),
    )
    for text in ("", "{}", "[" * 100_000, second.read_text(), without_a_score, other_seed):
        first.write_text(text)
        with pytest.raises(UserError, match="is not the record of .*; remove it"):
            study_module.study(output, plan, jobs=1)
    first.unlink()
    assert [training.name for training in Records(output, plan).left()] == [first.stem]


def test_a_list_shows_what_is_done_and_writes_nothing(whole, tmp_path):
    plan = Plan.of(FIGURES, 3, SMOKE)
    shown = listing(tmp_path / "new", plan, jobs=2)
    assert not (tmp_path / "new").exists()
    count = len(plan.trainings)
    assert f"0 of {count} trainings are done" in shown and "2 cores" in shown
    shown = listing(whole, plan, jobs=2)
    assert f"{count} of {count} trainings are done" in shown and "about 0 minutes" in shown


@pytest.mark.parametrize("scale", [FULL, SMOKE], ids=["full", "smoke"])
def test_names_of_cells_are_apart_and_claims_are_of_cells_that_are_trained(scale):
    made = figures(scale)
    cells = {cell for figure in made.values() for cell in figure.cells}
    assert len({cell.name for cell in cells}) == len(cells)
    for figure in made.values():
        assert {cell for claim in figure.claims for cell in claim.cells} <= set(figure.cells)
        assert len({(point.series, point.label) for point in figure.points}) == len(figure.points)


@pytest.mark.slow  # it is the real thing, in some steps
def test_a_real_one_in_small(tmp_path, capsys):
    command = ["study", "--smoke", "--figure", "f5", "--output", str(tmp_path)]
    assert main(command) == 0
    figure = found(tmp_path)["f5"]
    assert figure["trainings"] == {"done": 5, "of": 5}
    [path] = (tmp_path / "records").glob("question-20.seed-0.json")
    record = json.loads(path.read_text())
    assert record["steps"] == 2 and record["scores"]["drawings all right"] == 0
    assert not any((tmp_path / "work").iterdir())
    path.unlink()
    assert main(command) == 0
    assert found(tmp_path)["f5"] == figure  # the same seed, the same numbers
