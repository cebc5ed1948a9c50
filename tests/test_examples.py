"""examples/: every program runs as it stands, from an empty folder on a CPU, and learns."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph.model.opening import assemble
from metamorph.model.unified import MetaMorph
from metamorph.model.weights import read_tokenizer
from metamorph.monitor.metrics_file import read_metrics
from metamorph.quickstart.run import ASSETS, build_start
from tests.processes import run_processes
from tests.tiny_run import write_language

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LONGEST = 40  # lines of code: to be read in a minute
LOSSES = re.compile(r"text loss (\S+) cosine (\S+)")


def run(folder: Path, name: str, examples: Path = EXAMPLES) -> str:
    """What a program prints that is started in `folder`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, examples / name], cwd=folder, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(folder: Path, program: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # there may be fewer GPUs than processes
    os.chdir(folder)
    runpy.run_path(str(program), run_name="__main__")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    read_tokenizer(folder)  # raises UserError if the model was left without it
    return MetaMorph.from_pretrained(folder).state_dict()


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def trained(weights: dict) -> set[str]:
    """All but the encoder: it is frozen."""
    return {name for name in weights if not name.startswith("vision.")}


def losses(printed: str) -> tuple[list[float], list[float]]:
    """Of text, and cosines, one each a printed step."""
    pairs = LOSSES.findall(printed)
    return [float(text) for text, _ in pairs], [float(cosine) for _, cosine in pairs]


@pytest.fixture(scope="module")
def own_loop(tmp_path_factory):
    """A folder where own_loop.py has run, and what it printed."""
    folder = tmp_path_factory.mktemp("own_loop")
    return folder, run(folder, "own_loop.py")


@pytest.fixture(scope="module")
def own_source(own_loop, tmp_path_factory):
    """A folder with that model where own_source.py has run, its copy with pictures that cannot be
    used, and what it printed."""
    folder = tmp_path_factory.mktemp("own_source")
    shutil.copytree(own_loop[0] / "runs/own_loop/model", folder / "runs/own_loop/model")
    examples = shutil.copytree(EXAMPLES, folder / "examples")
    Image.new("RGB", (64, 64)).save(examples / "pictures" / "IMG_0001.png")
    (examples / "pictures" / "a broken picture.png").write_bytes(b"not a picture")
    return folder, examples, run(folder, "own_source.py", examples)


def test_the_page_lists_every_program():
    page = (EXAMPLES / "README.md").read_text()
    programs = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert set(re.findall(r"\]\(([\w/]+\.py)\)", page)) == programs


@pytest.mark.parametrize("name", ["own_loop.py", "own_source.py"])
def test_an_own_loop_or_source_is_short(name):
    text = (EXAMPLES / name).read_text()
    described = len(ast.get_docstring(ast.parse(text), clean=False).splitlines())
    assert len([line for line in text.splitlines()[described:] if line.strip()]) <= LONGEST


def test_the_own_loop_learns_to_answer_and_to_draw(own_loop, tmp_path):
    folder, printed = own_loop
    text, cosine = losses(printed)
    assert len(text) == 10
    assert text[-1] < text[0] - 0.3
    assert cosine[-1] > cosine[0] + 0.1
    build_start(tmp_path, seed=0)
    start = assemble(tmp_path, ASSETS / "encoder", grid=4)[0].state_dict()
    assert moved(start, weights_of(folder / "runs/own_loop/model")) == trained(start)


@pytest.mark.slow
def test_the_trainer_learns_from_an_own_source(own_source):
    folder, _, printed = own_source
    assert printed.splitlines()[-1] == "runs/own_source/model"
    start = weights_of(folder / "runs/own_loop/model")
    assert moved(start, weights_of(folder / "runs/own_source/model")) == trained(start)
    lines = read_metrics(folder / "runs/own_source")
    assert lines[-1]["step"] == 20
    assert lines[-1]["text_loss"] < lines[0]["text_loss"] - 0.3
    assert lines[-1]["visual_cosine"] > lines[0]["visual_cosine"] + 0.1
    assert set(lines[-1]["skipped"]) == {"no caption", "corrupt image"}


@pytest.mark.slow
def test_two_processes_train_as_one(own_source, own_loop, tmp_path):
    """What torchrun starts: the program stays as it is, and so does the model that it leaves."""
    folder, examples, _ = own_source
    alone = weights_of(folder / "runs/own_source/model")
    shutil.copytree(own_loop[0] / "runs/own_loop/model", tmp_path / "runs/own_loop/model")
    run_processes(2, run_here, tmp_path, examples / "own_source.py")
    for name, tensor in weights_of(tmp_path / "runs/own_source/model").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-4)


def test_the_ops_train_a_model_of_somebody_else(tmp_path):
    text, cosine = losses(run(tmp_path, "ops_elsewhere.py"))
    assert text[-1] < 0.1
    assert cosine[-1] > 0.95


def test_the_ops_elsewhere_need_torch_alone():
    program = ast.parse((EXAMPLES / "ops_elsewhere.py").read_text())
    modules = set()
    for node in ast.walk(program):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules == {"torch", "metamorph_kernels"}


def test_a_random_language_model_has_the_tokenizer_of_another(tmp_path, monkeypatch, capsys):
    words = write_language(tmp_path / "words")
    program = EXAMPLES / "english" / "random_language.py"
    options = "--width", "64", "--layers", "1"
    monkeypatch.setattr(sys, "argv", [str(program), str(words), str(tmp_path / "random"), *options])
    runpy.run_path(str(program), run_name="__main__")
    assert "0.1 million random weights" in capsys.readouterr().out
    model, tokenizer = assemble(tmp_path / "random", ASSETS / "encoder", grid=4)
    assert model.config.language.hidden_size == 64
    assert tokenizer.get_vocab().items() >= read_tokenizer(words).get_vocab().items()
