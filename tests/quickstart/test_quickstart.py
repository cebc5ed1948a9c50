"""The whole job, wired as the quickstart wires it, in a few steps. Its scores need the real run."""

import json
import shutil

import pytest
from PIL import Image

from metamorph.cli.command import main
from metamorph.generation.assistant import Assistant
from metamorph.model.unified import MetaMorph
from metamorph.quickstart import run as quickstart_module

KEYS = {
    "question_accuracy", "question_accuracy_by_attribute", "drawing_accuracy", "attributes",
    "checker_accuracy", "visual_cosine", "mean_baseline_cosine", "seconds", "seconds_by_stage",
    "versions", "held_out", "questions", "drawings",
}  # fmt: skip
ASSET_BYTES = 10_000_000


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
        patch.setattr(quickstart_module, "DRAWINGS", 4)
        quickstart_module.claim_folder(output)
        (output / "earlier").touch()  # what an earlier quickstart left is replaced
        report = quickstart_module.quickstart(output)
    assert not (output / "earlier").exists()
    return output, report


@pytest.mark.slow
def test_it_writes_everything_it_promises(finished):
    output, report = finished
    written = json.loads((output / "report.json").read_text())
    assert set(written) == KEYS and written == report
    assert written["checker_accuracy"] >= 0.99
    assert set(written["attributes"]) == {"colour", "shape", "size", "place"}
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
    one, two = chat.reply([("What colour is it?", (picture,)), ("Hello", ())], max_new_tokens=20)
    assert {one.finish_reason, two.finish_reason} <= {"stop", "length"}
    alone = chat.reply([("Hello", ())], max_new_tokens=20)[0]
    assert alone.text == two.text  # a batch changes nothing

    picture.save(tmp_path / "red.png")
    command = ["generate", "Describe the image.", "--image", str(tmp_path / "red.png")]
    assert main([*command, "--model", str(moved), "--save-to", str(tmp_path)]) == 0


def test_bars_are_checked():
    good = {
        "question_accuracy": 0.9, "drawing_accuracy": 0.75, "checker_accuracy": 0.99,
        "attributes": {"colour": 0.42, "shape": 0.5, "size": 0.75, "place": 0.45},
    }  # fmt: skip
    assert quickstart_module.missed_bars(good) == []
    assert len(quickstart_module.missed_bars(good | {"question_accuracy": 0.89})) == 1
    assert len(quickstart_module.missed_bars(good | {"drawing_accuracy": 0.74})) == 1
    blind = good["attributes"] | {"size": 0.74}
    assert "size" in quickstart_module.missed_bars(good | {"attributes": blind})[0]


def test_shipped_parts_are_small_safetensors():
    files = [path for path in quickstart_module.ASSETS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files) <= ASSET_BYTES
