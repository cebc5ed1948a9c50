"""Two different shapes side by side, drawn and asked about: GenEval's task of two objects.

A model whose training had no such pictures (`data.kinds` names `pair` for them) has to compose what
it knows of single shapes.
"""

from PIL import Image

from metamorph.data.toy.tasks import Task
from metamorph.evaluation.checker import ALL_RIGHT, score_pair
from metamorph.evaluation.options import Options
from metamorph.evaluation.scene_answers import (
    answer_questions,
    conversation,
    in_batches_of_tasks,
)
from metamorph.evaluation.scene_drawings import draw_features, drawing_answer, drawn_picture
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.task_source import TaskSource
from metamorph.evaluation.toy_tasks import tasks_of
from metamorph.generation.assistant import Assistant

NOTHING = {"objects": False, "colours": False, ALL_RIGHT: False}


def two_objects(chat: Assistant, options: Options) -> list[Scored]:
    """`options.count` drawings, by `score_pair`, and as many questions: is the answer `right`, and
    the same by what is asked for?"""
    found, tasks = [], drawings_of_pairs(options.count, options.source)
    for part in in_batches_of_tasks(tasks):
        replies = chat.generate([conversation(task) for task in part], drawing_answer(chat))
        features = [reply.features[:1] for reply in replies]
        drawn = draw_features(chat, features, len(found), options)
        found += [
            _drawing(task, pictures[0] if pictures else None)
            for task, pictures in zip(part, drawn, strict=True)
        ]
    for answer in answer_questions(chat, questions_of_pairs(options.count, options.source)):
        task = answer.task
        request, expected = (turn.text for turn in task.sample.turns)
        scores = dict.fromkeys(("right", f"right, {task.attribute}"), answer.right)
        cluster = task.combination
        found.append(
            Scored(task.sample.id, request, scores, expected, answer.text, cluster=cluster)
        )
    return found


def drawings_of_pairs(count: int, source: TaskSource) -> list[Task]:
    """The first requests to draw a held-out pair."""
    return tasks_of("pair", count, wanted=lambda task: not task.attribute, source=source)


def questions_of_pairs(count: int, source: TaskSource) -> list[Task]:
    """The first questions about a picture of a held-out pair."""
    return tasks_of("pair", count, wanted=lambda task: bool(task.attribute), source=source)


def _drawing(task: Task, picture: Image.Image | None) -> Scored:
    assert task.pair is not None  # of its kind
    scores = NOTHING if picture is None else score_pair(picture, task.pair)
    return Scored(
        task.sample.id, task.sample.turns[0].text, scores, cluster=task.combination,
        real=drawn_picture(task), drawn=picture,
    )  # fmt: skip
