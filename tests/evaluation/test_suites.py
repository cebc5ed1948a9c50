"""Suites are scored rightly: who is always right reaches the top; each mistake costs its share."""

from dataclasses import replace

import pytest

from metamorph.data.images import opened
from metamorph.data.toy.scenes import render, zoom
from metamorph.data.toy.tasks import Task
from metamorph.errors import UserError
from metamorph.evaluation import diversity, geneval
from metamorph.evaluation.checker import ALL_RIGHT, score
from metamorph.evaluation.diversity import DRAWS
from metamorph.evaluation.options import Options
from metamorph.evaluation.retrieval import distinct_tasks
from metamorph.evaluation.suites import SUITES, check_names
from metamorph.evaluation.task_source import SOURCES
from metamorph.evaluation.toy_tasks import caption_tasks, drawing_tasks, tasks_of
from metamorph.generation.messages import Drawing
from metamorph.model.siglip import SiglipEncoder
from metamorph.quickstart.run import ASSETS
from metamorph.tokens import IMAGE_PLACEHOLDER
from tests.evaluation.stand_in import NOTHING, Said, StandIn

COUNT = 4
OPTIONS = Options(COUNT)


@pytest.fixture(scope="module")
def encoder():
    return SiglipEncoder.from_pretrained(ASSETS / "encoder", grid=4)


def right(task: Task) -> Said:
    response = task.sample.turns[1].text
    picture = opened(task.sample.images[-1]) if IMAGE_PLACEHOLDER in response else None
    return response.replace(IMAGE_PLACEHOLDER, ""), picture


def of(samples, name: str) -> list:
    return [sample.scores[name] for sample in samples if name in sample.scores]


QUESTION = tasks_of("question", COUNT)
CAPTIONS = caption_tasks(COUNT)


def test_an_answer_is_right_if_it_is_the_same_text(encoder):
    said = [right(task) for task in QUESTION]
    samples = SUITES["questions"].run(StandIn(encoder, said), OPTIONS)
    assert of(samples, "right") == [True] * COUNT
    for one, task in zip(samples, QUESTION, strict=True):
        assert one.scores == {"right": True, task.attribute: True}
    said[1] = (said[1][0] + ".", None)
    samples = SUITES["questions"].run(StandIn(encoder, said), OPTIONS)
    assert of(samples, "right") == [True, False, True, True]
    assert samples[1].record()["answer"] == said[1][0]


def test_a_drawing_is_right_by_what_the_checker_reads(encoder):
    said = [right(task) for task in CAPTIONS]
    other = replace(CAPTIONS[2].scene, colour="green")
    assert other != CAPTIONS[2].scene
    said[1:3] = NOTHING, ("", render(other))
    samples = SUITES["captions"].run(StandIn(encoder, said), OPTIONS)
    assert of(samples, ALL_RIGHT) == [True, False, False, True]
    assert of(samples, "colour") == [True, False, False, True]
    assert of(samples, "shape") == [True, False, True, True]
    assert samples[1].drawn is None and samples[2].drawn is said[2][1]
    assert [one.record()["cluster"] for one in samples] == [task.combination for task in CAPTIONS]


@pytest.mark.parametrize("name", ["counts", "edits", "next-frames", "other-wordings"])
def test_every_kind_of_drawing_can_be_all_right(name, encoder):
    tasks = drawing_tasks(name.replace("-", " "), COUNT)
    samples = SUITES[name].run(StandIn(encoder, map(right, tasks)), OPTIONS)
    assert of(samples, ALL_RIGHT) == [True] * COUNT


def test_zooming_has_two_scores(encoder):
    tasks = tasks_of("zoom", COUNT)
    said = [right(task) for task in tasks]
    wrong = replace(tasks[1].scene, shape="cross" if tasks[1].scene.shape != "cross" else "circle")
    said[0], said[1] = ("a fish", said[0][1]), (said[1][0], zoom(wrong))
    samples = SUITES["zoom"].run(StandIn(encoder, said), OPTIONS)
    assert of(samples, "right") == [False, True, True, True]
    assert of(samples, "picture") == [True, False, True, True]


def test_a_question_about_an_own_drawing_comes_after_it(encoder):
    tasks = tasks_of("question", COUNT, wanted=lambda task: task.attribute != "count")
    firsts: list[Said] = [("", render(task.scene)) for task in tasks]
    seconds = [right(task) for task in tasks]
    model = StandIn(encoder, [*firsts, *seconds])
    samples = SUITES["own-questions"].run(model, OPTIONS)
    assert of(samples, "right") == of(samples, "as drawn") == [True] * COUNT
    ask, reply, again = model.asked[COUNT]
    assert [turn.role for turn in (ask, reply, again)] == ["user", "assistant", "user"]
    assert isinstance(reply.parts[0], Drawing) and not again.pictures

    # Of a drawing that is wrong, the answer that goes by it is wrong too, but as drawn.
    scene = replace(tasks[0].scene, place="center", colour="red", shape="circle", size="large")
    firsts[0] = "", render(scene)
    seconds[0] = model_answer(tasks[0], scene), None
    firsts[1] = NOTHING
    model = StandIn(encoder, [*firsts, seconds[0], *seconds[2:]])
    samples = SUITES["own-questions"].run(model, OPTIONS)
    assert of(samples, "as drawn") == [True, False, True, True]
    assert of(samples, "right") == [seconds[0] == right(tasks[0]), False, True, True]


def model_answer(task: Task, scene) -> str:
    return SOURCES["toy"].wording.answer(task.attribute, scene)


def test_an_edit_of_an_own_drawing_is_judged_by_the_second(encoder):
    firsts = [right(task) for task in CAPTIONS]
    model = StandIn(encoder, [*firsts, *firsts])  # nothing was changed
    samples = SUITES["own-edits"].run(model, OPTIONS)
    assert of(samples, "colour") == of(samples, ALL_RIGHT) == [False] * COUNT
    assert of(samples, "shape") == [True] * COUNT
    edited: list[Said] = [("", sample.real) for sample in samples]
    samples = SUITES["own-edits"].run(StandIn(encoder, [*firsts, *edited]), OPTIONS)
    assert of(samples, ALL_RIGHT) == [True] * COUNT


def test_geneval_judges_what_a_prompt_says(encoder):
    tasks = [task for kind in geneval.JUDGED for task in geneval.geneval_tasks(kind, COUNT)]
    said = [right(task) for task in tasks]
    assert "a circle." in {task.sample.turns[0].text[21:] for task in tasks}
    samples = SUITES["geneval"].run(StandIn(encoder, said), OPTIONS)
    assert of(samples, ALL_RIGHT) == [True] * 4 * COUNT
    assert all(of(samples, kind) == [True] * COUNT for kind in geneval.JUDGED)
    # A colour counts where it is said.
    green = [("", render(replace(task.scene, colour="green"))) for task in tasks]
    samples = SUITES["geneval"].run(StandIn(encoder, green), OPTIONS)
    asked_for = [task.scene.colour == "green" for task in tasks if task.kind == "colours"]
    assert of(samples, "colours") == asked_for and not all(asked_for)
    assert of(samples, "position") == of(samples, "counting") == [True] * COUNT


@pytest.mark.parametrize("kind", geneval.JUDGED)
def test_geneval_prompts_differ_and_their_pictures_show_them(kind):
    tasks = geneval.geneval_tasks(kind, 1000)
    assert len({task.sample.turns[0].text for task in tasks}) == len(tasks)
    assert len(tasks) == {"single object": 4, "colours": 24, "counting": 16, "position": 20}[kind]
    for task in tasks:
        read = score(opened(task.sample.images[0]), task.scene)
        assert all(read[name] for name in geneval.JUDGED[kind]), task


def test_the_right_picture_is_found_and_another_is_not(encoder):
    tasks = distinct_tasks(COUNT)
    said = [right(task) for task in tasks]
    said[0], said[2] = said[1], NOTHING
    samples = SUITES["retrieval"].run(StandIn(encoder, said), OPTIONS)
    assert of(samples, "top-1") == [False, True, False, True]
    first, second, third, _ = of(samples, "reciprocal rank")
    assert 0 < first <= 0.5 and second == 1 and third == 0


def test_drawings_without_noise_have_no_diversity(encoder, monkeypatch):
    said = [right(task) for task in CAPTIONS]
    said[1] = NOTHING  # of which there is nothing to compare
    chat, drawn = StandIn(encoder, said), []
    draw = chat.draw_batch
    monkeypatch.setattr(chat, "draw_batch", lambda of, **how: drawn.extend(of) or draw(of, **how))
    samples = SUITES["diversity"].run(chat, OPTIONS)
    assert len(drawn) == DRAWS * (COUNT - 1)  # and none that nobody looks at
    assert of(samples, "distance") == pytest.approx([0] * (COUNT - 1), abs=1e-5)
    assert of(samples, "all of them right") == [True] * (COUNT - 1)
    assert len(of(samples, "to another prompt")) == COUNT - 2
    assert min(of(samples, "to another prompt")) > 1e-3


def test_the_same_caption_again_is_no_other_prompt(encoder, monkeypatch):
    twice = [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]]
    monkeypatch.setattr(diversity, "caption_tasks", lambda count, source: twice)
    samples = SUITES["diversity"].run(StandIn(encoder, map(right, twice)), OPTIONS)
    assert ["to another prompt" in sample.scores for sample in samples] == [False, False, True]


@pytest.mark.parametrize("name", SOURCES)
def test_every_wording_asks_for_the_same_scenes(name):
    source = SOURCES[name]
    for number, plain in enumerate(CAPTIONS):
        task = source.task("draw", int(plain.sample.id.split("-")[-2]), "held_out")
        assert task.scene == plain.scene
        other = source.reworded(task, number)
        assert other.scene == task.scene and other.sample.turns[0] != task.sample.turns[0]
    for number, task in enumerate(tasks_of("question", COUNT, source=source)):
        other = source.reworded(task, number)
        assert other.sample.turns[1] == task.sample.turns[1]
        assert other.sample.turns[0].text.count(IMAGE_PLACEHOLDER) == 1


def test_suites_are_named_once():
    check_names(["questions", "text"])
    with pytest.raises(UserError, match="--suite: expected some of questions, .*, got 'colour'"):
        check_names(["colour"])
    with pytest.raises(UserError, match="text stands twice"):
        check_names(["text", "text"])
