"""What an evaluation leaves behind is whole, and holds numbers."""

import json
import math

import pytest
from PIL import Image

from metamorph.errors import UserError
from metamorph.evaluation.report import write_evaluation
from metamorph.evaluation.scored import Scored, means


class Unsavable(Image.Image):
    def save(self, *arguments, **options) -> None:
        raise OSError(28, "No space left on device")


def test_a_report_is_there_though_its_sheet_cannot_be(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        write_evaluation(tmp_path / "new", {"seed": 3}, Unsavable())
    [path] = (tmp_path / "new").iterdir()
    assert path.name == "evaluation.json" and json.loads(path.read_text()) == {"seed": 3}


def test_files_are_named_as_they_are_written(tmp_path):
    assert write_evaluation(tmp_path, {}, None) == "evaluation.json"
    assert write_evaluation(tmp_path, {}, Image.new("RGB", (8, 8))) == (
        "evaluation.json and samples.png"
    )
    assert Image.open(tmp_path / "samples.png").size == (8, 8)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "samples.png"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_sentence(value):
    samples = [Scored("a", "?", {"cosine": 0.5}), Scored("b", "?", {"cosine": value})]
    with pytest.raises(UserError, match="sample b: cosine is .*: the model's weights are damaged"):
        means(samples, seed=0)
