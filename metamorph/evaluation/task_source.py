"""Where the tasks of an evaluation come from: toy scenes, and how they are spoken of."""

import random
import re
from dataclasses import replace

from metamorph.data.conversation import USER, Turn
from metamorph.data.toy.english.wording import English
from metamorph.data.toy.scenes import Scene, caption
from metamorph.data.toy.tasks import Task, make_task
from metamorph.data.toy.wording import PLAIN, Wording
from metamorph.tokens import IMAGE_PLACEHOLDER

SEED = 12345  # training uses other ones

# Captions as training never words them: other verbs, no final stop, other spellings.
OTHER_REQUESTS = (
    "Draw {}.",
    "Generate an image of {}",
    "generate a picture of {british}.",
    "Please show me {}",
    "Generate an image of {british}.",
)
# Questions likewise.
OTHER_QUESTIONS = {
    "colour": "What color is the shape?",
    "shape": "Which shape is it?",
    "size": "Is it small or large?",
    "place": "Where is it?",
    "count": "How many shapes do you see?",
}


class TaskSource:
    """Tasks in a wording. `other` words some of them again, as training never does."""

    def __init__(self, wording: Wording, other: Wording):
        self.wording, self.other = wording, other

    @property
    def name(self) -> str:
        return self.wording.name

    def task(self, kind: str, index: int, split: str) -> Task:
        """Task number `index` of a kind of `metamorph.data.toy.tasks.KINDS`."""
        return make_task(SEED, index, split, {kind: 1.0}, self.wording)

    def reworded(self, task: Task, number: int) -> Task:
        """A caption or a question about one picture in other words, with the same answer. `number`
        chooses among them."""
        if task.attribute:
            asked = self.other.question(_choice(number), task.attribute)
            return with_request(task, IMAGE_PLACEHOLDER + asked)
        return with_request(task, self.other.drawing_request(_choice(number), task.scene))

    def drawing_request(self, scene: Scene, number: int) -> str:
        """Asks for a picture of a scene; `number` chooses the words."""
        return self.wording.drawing_request(_choice(number), scene)

    def edit_request(self, before: Scene, after: Scene, number: int) -> str:
        """Asks to recolour the picture that came before."""
        return self.wording.edit_request(_choice(number), before, after)


class ToyTasks(TaskSource):
    """In the few sentences of the quickstart, and a few others."""

    def __init__(self):
        super().__init__(PLAIN, PLAIN)

    def reworded(self, task: Task, number: int) -> Task:
        if task.attribute:
            return with_request(task, IMAGE_PLACEHOLDER + OTHER_QUESTIONS[task.attribute])
        words = caption(task.scene)
        british = re.sub("(top|bottom) ", r"\1-", words).replace("center", "centre")
        other = OTHER_REQUESTS[number % len(OTHER_REQUESTS)]
        return with_request(task, other.format(words, british=british))


def _choice(number: int) -> random.Random:
    return random.Random(f"words {SEED} {number}")


def with_request(task: Task, text: str) -> Task:
    """The same task in other words."""
    _, answer = task.sample.turns
    return replace(task, sample=replace(task.sample, turns=(Turn(USER, text), answer)))


TOY = ToyTasks()
SOURCES = {
    source.name: source
    for source in (
        TOY,
        TaskSource(English("train"), English("held_out")),
        TaskSource(English("held_out"), English("new_words")),
    )
}
