"""Drawings of toy scenes: what of them counts as right."""

import pytest
import torch

from metamorph.data.images import opened
from metamorph.decoder.kinds import open_decoder
from metamorph.evaluation.checker import ATTRIBUTES
from metamorph.evaluation.scene_drawings import Drawing, drawing_scores, redrawn
from metamorph.evaluation.toy_tasks import drawing_tasks
from metamorph.model.siglip import SiglipEncoder
from metamorph.quickstart.run import ASSETS


def test_a_drawing_is_all_right_only_if_each_attribute_is():
    def drawing(**right) -> Drawing:
        return Drawing(task, None, None, right)

    [task] = drawing_tasks("edits", 1)
    drawn = [drawing(colour=True, shape=False), drawing(colour=False, shape=True)]
    scored = drawing_scores([*drawn, drawing(colour=True, shape=True)])
    assert (scored["all_right"], scored["drawings"]) == (1, 3)
    assert scored["attributes"] == {"colour": 2, "shape": 2}
    assert scored["mean_of_attributes"] == pytest.approx(2 / 3)
    assert scored["example"].startswith("[picture] Make the ")


def test_the_shipped_one_pass_decoder_draws_held_out_scenes_right():
    """Of the shipped encoder's features; where a model drew nothing, there is nothing to draw."""
    encoder = SiglipEncoder.from_pretrained(ASSETS / "encoder", grid=4)
    tasks = drawing_tasks("captions", 24)
    with torch.no_grad():
        features = encoder(encoder.preprocess([opened(t.sample.images[-1]) for t in tasks]))
    unseen = dict.fromkeys(ATTRIBUTES, False)
    drawn = [
        Drawing(task, feature, None, unseen) for task, feature in zip(tasks, features, strict=True)
    ]
    drawn.insert(1, Drawing(tasks[0], None, None, unseen))
    decoder = open_decoder(ASSETS / "decoder_rae")
    again = redrawn(decoder, drawn)
    assert [each.task for each in again] == [each.task for each in drawn]
    assert again.pop(1).picture is None
    scored = drawing_scores(again)
    assert list(scored["attributes"]) == list(unseen)
    assert scored["all_right"] >= 0.9 * scored["drawings"]
