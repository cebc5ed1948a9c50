"""The whole job, wired as the quickstart wires it, in a few steps. Its scores need the real run."""

import json
import shutil

import pytest
from PIL import Image

from metamorph.cli.command import main
from metamorph.errors import UserError
from metamorph.evaluation.toy_tasks import JUDGED
from metamorph.generation import AnswerSettings, question
from metamorph.generation.assistant import Assistant
from metamorph.model.unified import MetaMorph
from metamorph.quickstart import run as quickstart_module

KEYS = {
    "questions", "questions_right", "question_accuracy", "question_accuracy_by_attribute",
    "drawings", "checker_accuracy", "visual_cosine", "mean_baseline_cosine", "seconds",
    "seconds_by_stage", "versions", "held_out", "other_questions",
}  # fmt: skip
ASSET_BYTES = 20_000_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quickstart of three steps a stage."""
    output = tmp_path_factory.mktemp("runs") / "quickstart"
    stage_config = quickstart_module.stage_config

    def short(stage, folder):
        config = stage_config(stage, folder)
        config.training.steps = 3
        if stage == "decoder":  # no other stage takes the key
            config.decoder.batch_size = 4
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart_module, "stage_config", short)
        patch.setattr(quickstart_module, "QUESTIONS", 20)
        patch.setattr(quickstart_module, "OTHER_QUESTIONS", {"motion": 2, "other wordings": 2})
        patch.setattr(quickstart_module, "DRAWINGS", dict.fromkeys(JUDGED, 3))
        with quickstart_module.claimed_folder(output):
            (output / "earlier").touch()  # what an earlier quickstart left is replaced
        report = quickstart_module.quickstart(output)
    assert not (output / "earlier").exists()
    return output, report


def test_a_second_one_does_not_replace_the_folder_of_one_that_runs(tmp_path):
    with quickstart_module.claimed_folder(tmp_path):
        with pytest.raises(UserError, match="^--output: .* is in use by process"):
            quickstart_module.quickstart(tmp_path)
        assert (tmp_path / "quickstart").exists()


@pytest.mark.slow
def test_it_writes_everything_it_promises(finished):
    output, report = finished
    written = json.loads((output / "report.json").read_text())
    assert set(written) == KEYS and written == report
    assert written["checker_accuracy"] >= 0.99
    assert list(written["drawings"]) == ["diffusion", "one pass"]
    kinds = ["captions", "counts", "edits", "next frames", "other wordings"]
    for by_kind in written["drawings"].values():
        assert list(by_kind) == kinds
        for kind, drawn in by_kind.items():
            judged = JUDGED[kind]
            assert drawn["drawings"] == 3 and list(drawn["attributes"]) == list(judged)
            assert 0 <= drawn["all_right"] <= min(drawn["attributes"].values())
    assert written["seconds"] >= sum(written["seconds_by_stage"].values()) > 0
    assert "combinations of shape, colour and place" in written["held_out"]
    assert Image.open(output / "samples.png").width > 200
    assert "<svg" in (output / "report.html").read_text()


@pytest.mark.slow
def test_the_model_folder_stands_alone(finished, tmp_path, capsys):
    output, _ = finished
    moved = shutil.copytree(output / "model", tmp_path / "model")
    assert MetaMorph.from_pretrained(moved).vision is not None
    chat = Assistant.from_pretrained(moved)
    picture = Image.new("RGB", (100, 50), "red")
    asked = [[question("What colour is it?", picture)], [question("Hello")]]
    one, two = chat.generate(asked, AnswerSettings(20))
    assert {one.finish_reason, two.finish_reason} <= {"stop", "length"}
    [alone] = chat.generate(asked[1:], AnswerSettings(20))
    assert alone.text == two.text  # a batch changes nothing

    picture.save(tmp_path / "red.png")
    command = ["generate", "Describe the image.", "--image", str(tmp_path / "red.png")]
    assert main([*command, "--model", str(moved), "--save-to", str(tmp_path)]) == 0


GOOD = {
    "questions": 300, "questions_right": 270, "question_accuracy": 0.9, "checker_accuracy": 0.99,
    "other_questions": {"motion": {"questions": 40, "right": 30}},
    "visual_cosine": 0.9734, "mean_baseline_cosine": 0.7981,
    "drawings": {
        "diffusion": {
            "captions": {
                "drawings": 150, "all_right": 75, "mean_of_attributes": 0.75,
                "attributes": {"colour": 63, "shape": 75, "size": 113, "place": 68},
            },
            "edits": {"drawings": 50, "all_right": 31, "attributes": {}, "mean_of_attributes": 0.9},
        },
        "one pass": {
            "captions": {
                "drawings": 150, "all_right": 135, "mean_of_attributes": 0.95,
                "attributes": {"colour": 150, "shape": 135, "size": 141, "place": 144},
            },
            "edits": {"drawings": 50, "all_right": 3, "attributes": {}, "mean_of_attributes": 0.2},
        },
    },
}  # fmt: skip


def with_captions(decoder: str = "diffusion", **changes) -> dict:
    """A report of other captions drawn by a decoder."""
    drawn = GOOD["drawings"][decoder]
    changed = drawn | {"captions": drawn["captions"] | changes}
    return GOOD | {"drawings": GOOD["drawings"] | {decoder: changed}}


def test_bars_are_checked():
    missed = quickstart_module.missed_bars
    assert missed(GOOD) == []
    assert len(missed(GOOD | {"question_accuracy": 0.89})) == 1
    assert "mean_of_attributes" in missed(with_captions(mean_of_attributes=0.74))[0]
    assert "all_right" in missed(with_captions(all_right=74))[0]
    assert missed(with_captions("one pass", all_right=134)) == [
        "all_right of captions in one pass is 0.893, expected at least 0.9"
    ]
    blind = GOOD["drawings"]["diffusion"]["captions"]["attributes"] | {"size": 112}
    assert "size" in missed(with_captions(attributes=blind))[0]


def test_scores_claim_what_was_counted():
    """All right is not the mean, and every share stands beside its count."""
    assert quickstart_module.scores(GOOD).splitlines() == [
        "held-out questions answered right: 90.0% (270 of 300)",
        "  motion 75.0% (30 of 40)",
        "held-out drawings with all attributes right, the same features drawn by each decoder:",
        "                  diffusion           one pass",
        "  captions        50.0% (75 of 150)   90.0% (135 of 150)",
        "  edits           62.0% (31 of 50)    6.0% (3 of 50)",
        "attributes of the 150 captions drawn right:",
        "  mean            75.0%               95.0%",
        "  colour          42.0%               100.0%",
        "  shape           50.0%               90.0%",
        "  size            75.3%               94.0%",
        "  place           45.3%               96.0%",
        "visual cosine 0.973, predicting the mean gives 0.798",
    ]


def test_shipped_parts_are_small_safetensors():
    files = [path for path in quickstart_module.ASSETS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jinja"}
    assert sum(path.stat().st_size for path in files) <= ASSET_BYTES
