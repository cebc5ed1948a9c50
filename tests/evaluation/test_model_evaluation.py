"""`metamorph evaluate --model`: what a whole model is measured on, and what is refused."""

import json

import pytest
from PIL import Image

from metamorph.cli.command import main
from metamorph.evaluation.suites import SUITES
from metamorph.model import assemble
from tests.page_folder import let_draw
from tests.tiny_run import GRID, tiny_decoder, tiny_one_pass

DRAWS = [name for name, suite in SUITES.items() if suite.draws]


@pytest.fixture(scope="module")
def models(parts, tmp_path_factory):
    """A model that answers all with a picture: with a decoder of each kind, and without."""
    folder = tmp_path_factory.mktemp("models")
    model, tokenizer = assemble(parts / "llama", parts / "siglip", grid=GRID)
    let_draw(model)
    for name in ("diffusion", "one_pass", "blind"):
        model.save_pretrained(folder / name, tokenizer)
    tiny_decoder().save_pretrained(folder / "diffusion/decoder")
    tiny_one_pass().save_pretrained(folder / "one_pass/decoder")
    return folder


def evaluate(*arguments: object) -> int:
    return main(["evaluate", "--count", "2", "--device", "cpu", *map(str, arguments)])


def test_everything_is_measured_and_compared_with_itself(models, tmp_path, capsys):
    command = ["--model", models / "diffusion", "--drawing-steps", 1, "--shown", 3]
    assert evaluate(*command, "--output", tmp_path / "out", "--seed", 3) == 0
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    said = capsys.readouterr().out
    assert [*report["suites"]] == [*SUITES]
    assert report["command"].startswith("metamorph evaluate --count 2 --device cpu --model ")
    assert (report["kind"], report["seed"], report["wording"]) == ("models", 3, "toy")
    assert report["drawing"]["num_inference_steps"] == 1 and "torch" in report["versions"]
    for name, suite in report["suites"].items():
        assert name in said and suite["asks"] and suite["samples"]
        assert all("cluster" in sample for sample in suite["samples"]) == (name != "geneval")
        for measure, found in suite["measures"].items():
            assert found["low"] <= found["mean"] <= found["high"], (name, measure)
            scored = [s for s in suite["samples"] if measure in s["scores"]]
            assert len(scored) == found["count"] or measure == "perplexity"
            assert 1 <= found["clusters"] <= found["count"]
    assert report["suites"]["retrieval"]["measures"]["top-1"]["chance"] == 0.02
    assert "questions" in said and "samples.png" in said
    assert Image.open(tmp_path / "out/samples.png").width > 3 * 300
    page = (tmp_path / "out/report.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in SUITES) and "data:image/png" in page
    file = str(tmp_path / "out/evaluation.json")
    assert main(["evaluate", "--compare", file, file]) == 0
    assert "+0.0% (+0.0% to +0.0%)" in capsys.readouterr().out


def test_what_a_model_cannot_be_asked_is_left_out_and_said(models, parts, tmp_path, capsys):
    for name, left in (("blind", DRAWS), ("one_pass", ["diversity"])):
        suites = ["--suite", "text"] if name == "one_pass" else []
        command = ["--model", models / name, "--output", tmp_path / name, *suites]
        assert evaluate(*command) == 0
        found = json.loads((tmp_path / name / "evaluation.json").read_text())
        if not suites:
            assert [*found["suites"]] == [suite for suite in SUITES if suite not in left]
            assert f"{left[0]} was not measured: {models / name} has no decoder/" in (
                capsys.readouterr().out
            )
        assert not (tmp_path / name / "samples.png").exists()
        [*asked] = "--model", models / name, "--output", tmp_path / "new", "--suite", left[-1]
        assert f"--suite: {left[-1]} cannot be measured: " in fails(capsys, *asked)
    llama = ["--model", parts / "llama", "--output", tmp_path / "llama"]
    assert evaluate(*llama) == 0
    found = json.loads((tmp_path / "llama/evaluation.json").read_text())
    assert [*found["suites"]] == ["text"] and found["model_type"] == "llama"
    assert "text alone was measured" in capsys.readouterr().out


def fails(capsys, *arguments) -> str:
    assert evaluate(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_does_not_fit_is_one_sentence(models, parts, tmp_path, capsys):
    new = "--output", tmp_path / "new"
    model = "--model", models / "blind"
    assert "--output: expected a new folder" in fails(capsys, *model)
    assert "expected some of questions" in fails(capsys, *model, *new, "--suite", "colours")
    assert "--wording: expected one of toy" in fails(capsys, *model, *new, "--wording", "latin")
    said = fails(capsys, *model, *new, "--suite", "questions", "--text", tmp_path / "a.txt")
    assert "--text goes with the suite text" in said
    said = fails(capsys, *model, *new, "--suite", "text", "--wording", "english-train")
    assert "--wording: the suite text asks nothing" in said
    draws = "--model", models / "one_pass", *new, "--suite", "questions", "--guidance", 1
    assert "--suite: questions draws nothing, so nothing can be set" in fails(capsys, *draws)
    assert "--clip goes with --decoder, not with --model without --decoder" in fails(
        capsys, *model, *new, "--clip", tmp_path
    )
    assert "--suite goes with --model without --decoder or --compare, not with --decoder" in fails(
        capsys, *model, *new, "--decoder", tmp_path, "--suite", "text"
    )
    assert "--decoder: its encoder is needed" in fails(capsys, *new, "--decoder", tmp_path)
    assert "nothing can be set for drawings" in fails(capsys, *model, *new, "--drawing-steps", 2)
    llama = "--model", parts / "llama", *new
    assert "which can be asked text alone" in fails(capsys, *llama, "--suite", "captions")
    assert not (tmp_path / "new").exists()
