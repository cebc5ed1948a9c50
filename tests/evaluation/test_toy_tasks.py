"""Tasks of an evaluation: each has one right answer, and a real picture that shows it."""

import re

import pytest

from metamorph.data.images import opened
from metamorph.data.toy.scenes import COLOURS, PLACES, SHAPES, Scene, is_held_out
from metamorph.evaluation.checker import score
from metamorph.evaluation.toy_tasks import JUDGED, drawing_tasks, other_questions, tasks_of


@pytest.mark.parametrize("kind", JUDGED)
def test_every_task_asks_for_one_picture_that_the_checker_reads(kind):
    tasks = drawing_tasks(kind, 8)
    assert [task.sample for task in tasks] == [t.sample for t in drawing_tasks(kind, 8)]
    for task in tasks:
        assert task.sample.turns[1].text == "<image>"
        right = score(opened(task.sample.images[-1]), task.scene)
        assert all(right[name] for name in JUDGED[kind]), task
        assert (task.scene.count > 1) == (kind == "counts")
        given = task.sample.turns[0].text.count("<image>")
        assert given == len(task.sample.images) - 1 == int(kind in ("edits", "next frames"))


@pytest.mark.parametrize("kind", ["question", "draw", "edit", "motion", "zoom", "text"])
def test_held_out_tasks_are_of_few_combinations_which_they_name(kind):
    single = [Scene(s, c, "large", p) for s in SHAPES for c in COLOURS for p in PLACES]
    several = [
        Scene(s, c, "small", "center", n) for s in SHAPES for c in COLOURS for n in (2, 3, 4, 5)
    ]
    held_out = {scene.combination for scene in (*single, *several) if is_held_out(scene)}
    assert len(held_out) == 36 and "one red circle center" in held_out
    found = {task.combination for task in tasks_of(kind, 40)}
    assert 10 < len(found) and found <= held_out


def test_other_questions_have_the_same_answers_in_other_words():
    plain = tasks_of("question", 20)
    for task, other in zip(plain, other_questions("other wordings", 20), strict=True):
        assert other.scene == task.scene and other.sample.turns[1] == task.sample.turns[1]
        assert other.sample.turns[0] != task.sample.turns[0]
    for task in other_questions("motion", 5):
        assert task.sample.turns[1].text in ("left", "right", "up", "down")
        assert len(task.sample.images) == task.sample.turns[0].text.count("<image>") == 2


def test_other_wordings_are_of_the_same_pictures_and_in_words_that_training_never_has():
    captions, reworded = (drawing_tasks(k, 40) for k in ("captions", "other wordings"))
    assert [task.scene for task in captions] == [task.scene for task in reworded]
    texts = [task.sample.turns[0].text for task in reworded]
    assert any("centre" in text for text in texts) and any("top-left" in text for text in texts)
    trained = re.compile(r"Generate an image of a \w+ \w+ \w+ at the [a-z]+( left| right)?\.")
    assert all(trained.fullmatch(task.sample.turns[0].text) for task in captions)
    for text in texts:
        assert "centre" in text or not trained.fullmatch(text), text
