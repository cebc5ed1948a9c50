"""From photographs of two packages to a small model of them, with tiny weights in place of real."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from metamorph.cli.command import main
from metamorph.config import DataConfig
from metamorph.data.opening import open_source
from metamorph.init.found_data import find_data
from metamorph.model import MetaMorph
from metamorph.model.efficientnet_lite import EfficientNetLite
from metamorph.monitor.metrics_file import read_metrics
from tests.tiny_run import GRID, write_efficientnet, write_language

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "examples/photographs/make_pairs.py"
CONFIGS = ROOT / "configs/photographs"
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Packages of these names, whose photographs are of one colour each."""
    names = runpy.run_path(str(PROGRAM))
    lines = names["CAPTIONS"].read_text().splitlines()
    pictures = [*(json.loads(line)["image"] for line in lines), *names["MORE"]]
    for package, folder in FOLDERS.items():
        here = tmp_path / "packages" / package / folder
        here.mkdir(parents=True)
        (tmp_path / "packages" / package / "__init__.py").touch()
        for number, name in enumerate(pictures):
            if (name in ("china.jpg", "flower.jpg")) == (package == "sklearn"):
                Image.new("RGB", (60, 40), (number * 15, 90, 120)).save(here / name)
    for package in FOLDERS:
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return tmp_path / "packages"


def run_program(monkeypatch, name: str, *arguments: object) -> None:
    program = str(PROGRAM.with_name(name))
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    runpy.run_path(program, run_name="__main__")


def make_pairs(monkeypatch, *arguments: object) -> None:
    run_program(monkeypatch, PROGRAM.name, *arguments)


def test_pictures_are_cut_asked_about_and_learned(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_pairs(monkeypatch, "data/photographs", "--per-photograph", 8)
    assert capsys.readouterr().out == "data/photographs: 98 pictures, 14 held out\n"
    lines = [json.loads(line) for line in Path("data/photographs/pairs.jsonl").open()]
    said = {line["image"]: line["caption"] for line in lines}
    assert said["pictures/chelsea-00.jpg"] == "a detail of the face of a ginger tabby cat"
    assert Image.open("data/photographs/pictures/china-07.jpg").size == (384, 384)
    held_out = Path("data/photographs/held_out.jsonl").read_text()
    assert held_out.count("-07.jpg") == 14 and not any("-07" in name for name in said)

    language, encoder = write_language(tmp_path / "llama"), write_efficientnet(tmp_path / "lite")
    short = ["--training.steps", "1", "--device", "cpu", "--training.validation_rows", "1"]
    start = ["--model.language", language, "--model.vision", encoder, "--model.grid", GRID]
    start += ["--model.chat_template", ROOT / "configs/smollm2/chat_template.jinja"]
    assert main(["train", str(CONFIGS / "align.yaml"), *map(str, start), *short]) == 0
    assert main(["train", str(CONFIGS / "instruct.yaml"), *short]) == 0
    run = Path("runs/photographs/instruct")
    assert "validation_visual_cosine" in read_metrics(run)[-1]
    assert type(MetaMorph.from_pretrained(run / "model").encoder) is EfficientNetLite

    capsys.readouterr()
    run_program(monkeypatch, "measure.py", run / "model", "data/photographs")
    table, wrong = capsys.readouterr().out.split("\nexpected ", 1)
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in table.splitlines())
    assert lines["question: right"].split() == ["14", "14", "0.0%", "(0.0%", "to", "0.0%)"]
    assert lines["cosine: of its photograph's mean"].endswith("1.000 (1.000 to 1.000)")
    assert wrong.startswith("'It shows a detail of a smiling astronaut")


def test_a_model_that_is_absent_is_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_program(monkeypatch, "measure.py", tmp_path / "none", tmp_path)
    assert stopped.value.code == 2
    assert "none" in capsys.readouterr().err


def test_a_package_that_is_absent_is_named(packages, tmp_path, monkeypatch, capsys):
    (packages / "sklearn" / "__init__.py").unlink()
    with pytest.raises(SystemExit) as stopped:
        make_pairs(monkeypatch, tmp_path / "out")
    assert stopped.value.code == 2
    assert "sklearn is absent: pip install scikit-image scikit-learn" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hundred_samples_whose_pictures_may_be_passed_on(packages, tmp_path, monkeypatch, capsys):
    program = PROGRAM.with_name("hundred_samples.py")
    monkeypatch.syspath_prepend(PROGRAM.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program), "data/hundred"])
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == "data/hundred: 100 samples\n"
    folder = tmp_path / "data/hundred"
    found = find_data("data/hundred/samples.jsonl", words=True)
    assert "100 records" in found.what and found.config.family == "conversations"
    source = open_source(DataConfig(path="data/hundred/samples.jsonl"), 0)
    samples = [source.sample(index) for index in range(100)]
    asked = sum("<image>" in sample.turns[0].text for sample in samples)
    assert 40 <= asked <= 60
    assert all(image.open().size for sample in samples for image in sample.images)
    said = (folder / "LICENCES.md").read_text()
    for picture in (folder / "pictures").glob("*.jpg"):
        assert f"| {picture.stem.rpartition('-')[0]}." in said
    assert not list((folder / "pictures").glob("motorcycle*"))
