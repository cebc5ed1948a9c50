"""Visual thinking: the model first draws the shape enlarged, then answers about it."""

from PIL import Image

from metamorph.data.toy.tasks import Task
from metamorph.evaluation.checker import ZOOMED, score_zoom
from metamorph.evaluation.options import Options
from metamorph.evaluation.scene_answers import conversation, in_batches_of_tasks
from metamorph.evaluation.scene_drawings import (
    draw_features,
    drawing_answer,
    drawn_picture,
)
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.toy_tasks import tasks_of
from metamorph.generation.assistant import Assistant
from metamorph.tokens import IMAGE_PLACEHOLDER


def zoom_answers(chat: Assistant, options: Options) -> list[Scored]:
    """Is the answer `right`, and does the `picture` before it show the shape in its colour and
    size?"""
    tasks, found = tasks_of("zoom", options.count, source=options.source), []
    for part in in_batches_of_tasks(tasks):
        replies = chat.generate([conversation(task) for task in part], drawing_answer(chat))
        features = [reply.features[:1] for reply in replies]
        drawn = draw_features(chat, features, len(found), options)
        for task, reply, pictures in zip(part, replies, drawn, strict=True):
            found.append(_scored(task, reply.text, pictures[0] if pictures else None))
    return found


def _scored(task: Task, answer: str, picture: Image.Image | None) -> Scored:
    request, response = (turn.text for turn in task.sample.turns)
    expected = response.replace(IMAGE_PLACEHOLDER, "")
    read = {} if picture is None else score_zoom(picture, task.scene)
    scores = {
        "right": answer == expected,
        "picture": all(read.get(name, False) for name in ZOOMED),
    }
    name, cluster, real = task.sample.id, task.combination, drawn_picture(task)
    return Scored(
        name, request, scores, expected, answer, cluster=cluster, real=real, drawn=picture
    )
