"""Conversations about a picture that the model drew itself, which it reads as it predicted it."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from metamorph.data.toy.scenes import COLOURS, Scene, is_held_out, render
from metamorph.data.toy.tasks import Task
from metamorph.evaluation.checker import ALL_RIGHT, ATTRIBUTES, read_scene, score
from metamorph.evaluation.options import Options
from metamorph.evaluation.scene_answers import in_batches_of_tasks
from metamorph.evaluation.scene_drawings import draw_features, drawing_answer
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.task_source import SEED
from metamorph.evaluation.toy_tasks import caption_tasks, tasks_of
from metamorph.generation.answer import Reply
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import question
from metamorph.tokens import IMAGE_PLACEHOLDER


@dataclass(frozen=True)
class Exchange:
    """A task and its two requests; both replies, or None for the second where the first drew
    nothing that could be asked about."""

    task: Task
    requests: tuple[str, str]
    first: Reply
    second: Reply | None

    @property
    def request(self) -> str:
        return " / ".join(self.requests)


def own_questions(chat: Assistant, options: Options) -> list[Scored]:
    """Asks for a picture of one shape, then about it. `right` goes by what was to be drawn, `as
    drawn` by what the checker reads in the drawing: a wrong drawing may be seen rightly."""
    source = options.source

    def requests(task: Task, number: int) -> tuple[str, str]:
        asked = task.sample.turns[0].text.replace(IMAGE_PLACEHOLDER, "")
        return source.drawing_request(task.scene, number), asked

    about_one = tasks_of(
        "question", options.count, wanted=lambda task: task.attribute != "count", source=source
    )
    exchanges = exchange(chat, about_one, requests)
    pictures = _drawn(chat, [one.first for one in exchanges], options)
    found = []
    for one, picture in zip(exchanges, pictures, strict=True):
        answer = "" if one.second is None else one.second.text
        expected = one.task.sample.turns[1].text
        reading = None if picture is None else read_scene(picture)
        as_drawn = None
        if reading is not None:
            shown = Scene(reading.shape, reading.colour, reading.size, reading.place, reading.count)
            as_drawn = source.wording.answer(one.task.attribute, shown)
        scores = {"right": answer == expected, "as drawn": answer == as_drawn}
        found.append(
            Scored(
                one.task.sample.id, one.request, scores, expected, answer,
                cluster=one.task.combination,
            )
        )  # fmt: skip
    return found


def own_edits(chat: Assistant, options: Options) -> list[Scored]:
    """Asks for a picture of one shape, then for the same in another colour."""
    source = options.source
    tasks = caption_tasks(options.count, source=source)
    edited = {}
    for task in tasks:
        others = [replace(task.scene, colour=c) for c in COLOURS if c != task.scene.colour]
        choice = random.Random(f"{task.sample.id} {SEED}")
        edited[task.sample.id] = choice.choice([s for s in others if not is_held_out(s)])

    def requests(task: Task, number: int) -> tuple[str, str]:
        after = edited[task.sample.id]
        edit = source.edit_request(task.scene, after, number)
        return task.sample.turns[0].text, edit

    exchanges = exchange(chat, tasks, requests)
    pictures = _drawn(chat, [one.second for one in exchanges], options)
    found = []
    for one, picture in zip(exchanges, pictures, strict=True):
        scene = edited[one.task.sample.id]
        read = {} if picture is None else score(picture, scene)
        right = {name: read.get(name, False) for name in ATTRIBUTES}
        scores = right | {ALL_RIGHT: all(right.values())}
        id, real = one.task.sample.id, render(scene)
        cluster = one.task.combination
        found.append(Scored(id, one.request, scores, cluster=cluster, real=real, drawn=picture))
    return found


def exchange(
    chat: Assistant, tasks: list[Task], requests: Callable[[Task, int], tuple[str, str]]
) -> list[Exchange]:
    """Both requests of each task and the replies, the second with the first in front of it.
    `requests` is given the number of a task."""
    settings, found = drawing_answer(chat), []
    for part in in_batches_of_tasks(tasks):
        asked = [requests(task, len(found) + number) for number, task in enumerate(part)]
        opening = [question(first) for first, _ in asked]
        firsts = chat.generate([[turn] for turn in opening], settings)
        drew = [number for number, reply in enumerate(firsts) if reply.drawings]
        conversations = [
            [opening[number], firsts[number].message, question(asked[number][1])] for number in drew
        ]
        seconds = dict(zip(drew, chat.generate(conversations, settings), strict=True))
        found += [
            Exchange(task, both, first, seconds.get(number))
            for number, (task, both, first) in enumerate(zip(part, asked, firsts, strict=True))
        ]
    return found


def _drawn(
    chat: Assistant, replies: list[Reply | None], options: Options
) -> list[Image.Image | None]:
    """The first picture of each reply."""
    features = [[] if reply is None else reply.features[:1] for reply in replies]
    drawn = draw_features(chat, features, 0, options)
    return [pictures[0] if pictures else None for pictures in drawn]
