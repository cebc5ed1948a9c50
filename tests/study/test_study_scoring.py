"""Drawings of a finer grid are drawn by the same decoder as all others."""

import torch

from metamorph.data.images import opened
from metamorph.decoder.kinds import open_decoder
from metamorph.evaluation.scene_drawings import Drawing, drawing_scores, redrawn
from metamorph.evaluation.toy_tasks import caption_tasks, tasks_of
from metamorph.model.siglip import SiglipEncoder
from metamorph.quickstart.run import ASSETS, ONE_PASS_DECODER
from metamorph.study.scoring import pooled, spoken


@torch.no_grad()
def test_features_of_64_tokens_are_drawn_as_those_of_16():
    """So that what is drawn worse from them was predicted worse."""
    encoder = SiglipEncoder.from_pretrained(ASSETS / "encoder", grid=8)
    tasks = caption_tasks(40)
    features = encoder(encoder.preprocess([opened(task.sample.images[-1]) for task in tasks]))
    assert features.shape[1] == 64
    asked = [
        Drawing(task, pooled(feature), None, {"colour": False, "shape": False, "place": False})
        for task, feature in zip(tasks, features, strict=True)
    ]
    drawn = drawing_scores(redrawn(open_decoder(ONE_PASS_DECODER), asked))
    assert drawn["all_right"] >= 0.9 * drawn["drawings"]


def test_pooling_takes_neighbours_together_and_leaves_16_alone():
    features = torch.randn(64, 5)
    first = features[[0, 1, 8, 9]].mean(0)
    torch.testing.assert_close(pooled(features)[0], first / first.norm())
    assert pooled(features[:16]).equal(features[:16])


def test_a_zoom_is_right_by_its_words():
    [task] = tasks_of("zoom", 1)
    asked, answer = spoken(task).sample.turns
    assert asked == task.sample.turns[0] and asked.text.startswith("<image>Zoom in")
    assert answer.text == getattr(task.scene, task.attribute)  # a colour or a shape
