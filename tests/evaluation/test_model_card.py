"""A model card says what the Hub asks for, and what an evaluation measured."""

import json

import pytest
from huggingface_hub import ModelCard

from metamorph.cli.command import main
from tests.model.tiny_models import tiny_model

MEAN = {"count": 8, "clusters": 8, "mean": 0.75, "low": 0.5, "high": 1.0}
REPORT = {
    "kind": "models", "command": "metamorph evaluate --model here", "seed": 0, "device": "cpu",
    "suites": {
        "questions": {
            "samples": [{"id": "a", "request": "What?", "scores": {"right": True}}],
            "measures": {"right": MEAN},
        },
        "cosine": {
            "samples": [{"id": "a", "request": "A circle", "scores": {"cosine": 0.75}}],
            "measures": {"cosine": MEAN},
        },
    },
}  # fmt: skip


@pytest.fixture
def command(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "evaluation.json").write_text(json.dumps(REPORT))
    return ["card", str(tmp_path / "model"), "--name", "me/mine", "--license", "mit",
            "--data", "Toy scenes.", "--base", "you/base",
            "--evaluation", str(tmp_path / "evaluation.json")]  # fmt: skip


def test_the_hub_finds_its_fields(command, tmp_path):
    assert main(command) == 0
    card = ModelCard.load(tmp_path / "model/README.md")
    assert (card.data.license, card.data.base_model) == ("mit", ["you/base"])
    assert card.data.library_name == "metamorph"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "# me/mine" in card.text and "Toy scenes." in card.text


def test_measures_stand_in_a_table_shares_in_percent(command, tmp_path):
    assert main(command) == 0
    lines = (tmp_path / "model/README.md").read_text().splitlines()
    assert "| questions | right | 8 | 75.0% | 50.0% to 100.0% |" in lines
    assert "| cosine | cosine | 8 | 0.750 | 0.500 to 1.000 |" in lines
    assert "Made by `metamorph evaluate --model here`, seed 0, on cpu." in lines


def test_a_card_that_is_there_is_kept(command, tmp_path, capsys):
    (tmp_path / "model/README.md").write_text("mine")
    assert main(command) == 2
    assert "README.md exists" in capsys.readouterr().err
    assert (tmp_path / "model/README.md").read_text() == "mine"


def test_a_damaged_report_is_named_and_nothing_written(command, tmp_path, capsys):
    damaged = json.dumps(REPORT).replace('"low"', '"lowest"')
    (tmp_path / "evaluation.json").write_text(damaged)
    assert main(command) == 2
    assert "evaluation.json: not as metamorph evaluate writes it" in capsys.readouterr().err
    assert not (tmp_path / "model/README.md").exists()
