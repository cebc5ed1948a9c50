"""examples/evaluation/decoder_study.py: a table of decoders of both kinds, which goes on where it
was stopped."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamorph.cli.command import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(monkeypatch) -> dict:
    """Its names; of its twelve decoders two. What it calls `metamorph` with is kept as `calls`."""
    monkeypatch.chdir(ROOT)
    names = runpy.run_path("examples/evaluation/decoder_study.py")
    calls = []
    changes = {
        "GRIDS": (8,),
        "NOISES": (0.3,),
        "main": lambda given: calls.append(given) or main(given),
    }
    names["study"].__globals__.update(changes)
    return names | {"calls": calls}


def photographs(folder: Path) -> list[str]:
    numbers = np.random.default_rng(0)
    paths = [folder / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(numbers.integers(0, 255, (150, 200, 3), np.uint8)).save(path)
    return [str(path) for path in paths]


def test_a_table_of_both_kinds_on_photographs(program, tmp_path, capsys):
    output, calls = tmp_path / "study", program["calls"]
    command = [
        "--output", str(output), "--steps", "1", "--count", "1", "--pictures",
        *photographs(tmp_path), "--decoder.batch_size", "2", "--device", "cpu",
    ]  # fmt: skip
    program["study"](command)
    table = (output / "study.md").read_text()
    assert table.startswith("1 steps each; 1 held-out pictures, with 95 % intervals.\n\n| kind |")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()[4:]]
    assert rows == [["diffusion", "64", "0.3"], ["rae", "64", "0.3"]]
    assert [call[0] for call in calls] == ["train", "train", "evaluate"]
    patches = {path.name: path.parent.name for path in output.glob("patches/*/*.png")}
    assert patches == {"a-0-0.png": "held_out", "b-0-0.png": "training", "b-0-64.png": "training"}

    calls.clear()
    shutil.rmtree(output / "rae-64-0.3/decoder")
    shutil.rmtree(output / "evaluation")
    program["study"](command)  # at its last checkpoint nothing is left to train
    assert [call[0] for call in calls] == ["train", "evaluate"] and "--resume" in calls[0]
    again = (output / "study.md").read_text()
    assert [line.rpartition(") |")[0] for line in again.splitlines()] == [
        line.rpartition(") |")[0] for line in table.splitlines()
    ]
    with pytest.raises(SystemExit, match="holds the study of another command"):
        program["study"]([*command, "--seed", "1"])


def test_what_fails_ends_it_with_its_exit_code_and_can_be_put_right(program, tmp_path, capsys):
    """In the same folder, as long as nothing is trained; then no other pictures are left."""
    output = tmp_path / "study"
    command = ["--output", str(output), "--steps", "1"]
    with pytest.raises(SystemExit, match="it takes two pictures"):
        program["study"]([*command, "--pictures", "one.png"])
    for pictures in (["--pictures", *photographs(tmp_path)], []):
        with pytest.raises(SystemExit) as ended:
            program["study"]([*command, *pictures, "--decoder.colour", "red"])
        assert ended.value.code == 2 and "colour" in capsys.readouterr().err
        assert (output / "patches").exists() == bool(pictures)
    assert {path.name for path in output.iterdir()} == {"command.json", "encoder"}
