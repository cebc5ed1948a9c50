"""What a model answers to questions about toy scenes, and which answers are exactly right."""

from collections.abc import Iterator
from dataclasses import dataclass

from tqdm import tqdm

from metamorph.data.images import opened
from metamorph.data.toy.tasks import QUESTIONS, Task
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import Message, question
from metamorph.generation.settings import AnswerSettings
from metamorph.tokens import IMAGE_PLACEHOLDER

BATCH = 50  # tasks at once
LONGEST_ANSWER = 32  # tokens


@dataclass(frozen=True)
class Answer:
    task: Task
    text: str

    @property
    def right(self) -> bool:
        return self.text == self.task.sample.turns[1].text


def conversation(task: Task) -> list[Message]:
    """The request of a task, with its pictures."""
    text = task.sample.turns[0].text
    images = task.sample.images[: text.count(IMAGE_PLACEHOLDER)]
    return [question(text, *map(opened, images))]


def in_batches_of_tasks(tasks: list[Task]) -> Iterator[list[Task]]:
    """All of them, with a progress bar."""
    starts = range(0, len(tasks), BATCH)
    for start in tqdm(starts, desc=tasks[0].kind, mininterval=1):
        yield tasks[start : start + BATCH]


def answer_questions(chat: Assistant, tasks: list[Task]) -> list[Answer]:
    settings = AnswerSettings(LONGEST_ANSWER, drawing=None)
    answers = []
    for part in in_batches_of_tasks(tasks):
        replies = chat.generate([conversation(task) for task in part], settings)
        answers += [Answer(task, reply.text) for task, reply in zip(part, replies, strict=True)]
    return answers


def question_accuracy(answers: list[Answer]) -> tuple[float, dict[str, float]]:
    """Share of exactly right answers, in all and per attribute."""
    per_attribute = {}
    for attribute in QUESTIONS:
        asked = [a.right for a in answers if a.task.attribute == attribute]
        per_attribute[attribute] = sum(asked) / len(asked)
    return sum(a.right for a in answers) / len(answers), per_attribute
