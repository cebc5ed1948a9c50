"""docs/library.md: both scripts run as they stand on a tiny model, and learn."""

import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph.model.opening import assemble
from metamorph.model.unified import MetaMorph
from metamorph.model.weights import read_tokenizer
from metamorph.monitor.metrics_file import read_metrics
from tests.processes import run_processes
from tests.tiny_run import GRID, write_language, write_vision

PAGE = (Path(__file__).parent.parent / "docs/library.md").read_text()
START = Path("runs/quickstart/model")  # where both scripts find a model
NAMED = Path("runs/named_pictures")  # the run of the second one
OWN_LOOP, NAMED_PICTURES = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    language, vision = write_language(folder / "llama"), write_vision(folder / "siglip")
    torch.manual_seed(0)
    model, tokenizer = assemble(language, vision, grid=GRID)
    model.save_pretrained(folder / "model", tokenizer)
    return folder / "model"


@pytest.fixture
def here(start, tmp_path, monkeypatch):
    """A working directory with the folders that the page names."""
    monkeypatch.chdir(tmp_path)
    START.parent.mkdir(parents=True)
    START.symlink_to(start)
    pictures = Path("pictures")
    pictures.mkdir()
    for colour in ("red", "green", "blue", "white", "yellow", "purple", "orange", "grey"):
        for size in (32, 64):
            Image.new("RGB", (size, size), colour).save(pictures / f"{size} {colour} pixels.png")
    Image.new("RGB", (64, 64)).save(pictures / "IMG_0001.png")
    (pictures / "32 broken pixels.png").write_bytes(b"not a picture")
    return tmp_path


def run(script: str) -> None:
    exec(compile(script, "docs/library.md", "exec"), {"__name__": "__main__"})


def run_in(folder: Path, script: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # there may be fewer GPUs than processes
    os.chdir(folder)
    run(script)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    read_tokenizer(folder)  # raises UserError if the model was left without it
    return MetaMorph.from_pretrained(folder).state_dict()


def moved(folder: Path) -> set[str]:
    """Parameters that differ from those of the start, but for the encoder's: it is frozen."""
    before, after = weights_of(START), weights_of(folder)
    return {name for name in before if not torch.equal(before[name], after[name])}


def trained_names() -> set[str]:
    return {name for name in weights_of(START) if not name.startswith("vision.")}


def test_the_scripts_are_short():
    for script in (OWN_LOOP, NAMED_PICTURES):
        assert len([line for line in script.splitlines() if line.strip()]) <= 40


def test_the_own_loop_learns_to_answer_and_to_draw(here, capsys):
    run(OWN_LOOP)
    lines = re.findall(r"text loss (\S+) cosine (\S+)", capsys.readouterr().out)
    assert len(lines) == 10
    text, cosine = ([float(value) for value in values] for values in zip(*lines, strict=True))
    assert text[-1] < text[0] - 0.3
    assert cosine[-1] > cosine[0] + 0.1
    assert moved(Path("runs/own_loop")) == trained_names()


def test_the_trainer_learns_from_a_custom_source(here, capsys):
    run(NAMED_PICTURES)
    assert capsys.readouterr().out.splitlines()[-1] == str(NAMED / "model")
    assert moved(NAMED / "model") == trained_names()
    lines = read_metrics(NAMED)
    assert lines[-1]["step"] == 20
    assert lines[-1]["text_loss"] < lines[0]["text_loss"] - 0.3
    assert lines[-1]["visual_cosine"] > lines[0]["visual_cosine"] + 0.1
    assert set(lines[-1]["skipped"]) == {"no caption", "corrupt image"}


@pytest.mark.slow
def test_two_processes_train_as_one(here):
    """What torchrun starts: the script stays as it is, and so does the model that it leaves."""
    run(NAMED_PICTURES)
    alone = weights_of(NAMED / "model")
    NAMED.rename("alone")
    run_processes(2, run_in, here, NAMED_PICTURES)
    for name, tensor in weights_of(NAMED / "model").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-4)
