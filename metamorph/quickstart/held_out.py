"""How well a toy model answers and draws combinations that its training never showed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metamorph.data.conversation import USER, Turn
from metamorph.data.images import opened
from metamorph.data.packing import TargetCounts, pack_row
from metamorph.data.toy.scenes import COLOURS, PLACES, SHAPES, Scene, caption, is_held_out
from metamorph.data.toy.tasks import QUESTIONS, Task
from metamorph.decoder.kinds import OpenedDecoder
from metamorph.evaluation.checker import ATTRIBUTES, score
from metamorph.evaluation.toy_tasks import caption_tasks, tasks_of
from metamorph.generation.assistant import Assistant
from metamorph.generation.messages import Message, question
from metamorph.generation.settings import AnswerSettings
from metamorph.tokens import IMAGE_PLACEHOLDER
from metamorph.training.batch import Batch
from metamorph.training.language_stage import batch_losses

BATCH = 50


# What is asked to be drawn, and by which attributes a drawing is judged. A caption of several
# shapes says no place; all other pictures show one shape.
SEVERAL = ("colour", "shape", "size", "count")
JUDGED = {
    "captions": ATTRIBUTES,
    "counts": SEVERAL,
    "edits": ATTRIBUTES,
    "next frames": ATTRIBUTES,
    "other wordings": ATTRIBUTES,
}
# Captions as training never words them: other verbs, no final stop, other spellings.
WORDINGS = (
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


@dataclass(frozen=True)
class Answer:
    task: Task
    text: str

    @property
    def right(self) -> bool:
        return self.text == self.task.sample.turns[1].text


@dataclass(frozen=True)
class Drawing:
    task: Task
    features: Tensor | None  # [tokens, C]; None if the model drew nothing
    picture: Image.Image | None
    right: dict[str, bool]  # per attribute


def drawing_tasks(asked: str, count: int, split: str = "held_out") -> list[Task]:
    """Tasks of one of the kinds in `JUDGED`, each answered by one picture.

    Other wordings are those of the first captions.
    """
    match asked:
        case "captions":
            return caption_tasks(count, split)
        case "counts":
            return tasks_of("draw", count, split, lambda task: task.scene.count > 1)
        case "edits":
            return tasks_of("edit", count, split)
        case "next frames":
            return tasks_of(
                "motion", count, split, lambda task: task.sample.turns[1].text == IMAGE_PLACEHOLDER
            )
        case _:
            captions = drawing_tasks("captions", count, split)
            return [reworded(task, number) for number, task in enumerate(captions)]


def other_questions(asked: str, count: int) -> list[Task]:
    """Questions beside the plain ones: about motion, or the plain ones in other wordings."""
    if asked == "motion":
        return tasks_of("motion", count, wanted=lambda task: not _is_drawn(task))
    return [
        _with_request(task, IMAGE_PLACEHOLDER + OTHER_QUESTIONS[task.attribute])
        for task in tasks_of("question", count)
    ]


def _is_drawn(task: Task) -> bool:
    return task.sample.turns[1].text == IMAGE_PLACEHOLDER


def reworded(task: Task, number: int) -> Task:
    """The same picture asked for in another of `WORDINGS`."""
    words = caption(task.scene)
    british = re.sub("(top|bottom) ", r"\1-", words).replace("center", "centre")
    return _with_request(task, WORDINGS[number % len(WORDINGS)].format(words, british=british))


def _with_request(task: Task, text: str) -> Task:
    _, answer = task.sample.turns
    return replace(task, sample=replace(task.sample, turns=(Turn(USER, text), answer)))


def describe_split() -> str:
    """What is held out, with examples, in words."""
    single = [Scene(s, c, "large", p) for s in SHAPES for c in COLOURS for p in PLACES]
    unseen = [f"{s.colour} {s.shape} at the {s.place}" for s in single if is_held_out(s)]
    return (
        f"{len(unseen)} of {len(single)} combinations of shape, colour and place, such as "
        f"{', '.join(unseen[:4])}"
    )


def _conversations(tasks: list[Task]) -> list[list[Message]]:
    conversations = []
    for task in tasks:
        text = task.sample.turns[0].text
        images = task.sample.images[: text.count(IMAGE_PLACEHOLDER)]
        conversations.append([question(text, *map(opened, images))])
    return conversations


def _batches(tasks: list[Task]) -> Iterator[list[Task]]:
    starts = range(0, len(tasks), BATCH)
    for start in tqdm(starts, desc=tasks[0].kind, mininterval=1):
        yield tasks[start : start + BATCH]


def answer_questions(chat: Assistant, tasks: list[Task]) -> list[Answer]:
    answers = []
    for part in _batches(tasks):
        replies = chat.generate(_conversations(part), AnswerSettings(32, drawing=None))
        answers += [Answer(task, reply.text) for task, reply in zip(part, replies, strict=True)]
    return answers


def draw_scenes(
    chat: Assistant, tasks: list[Task], attributes: tuple[str, ...] = ATTRIBUTES
) -> list[Drawing]:
    """What the model draws, each from a seed of its own, and which attributes are right."""
    drawings = []
    for part in _batches(tasks):
        replies = chat.generate(_conversations(part), AnswerSettings(64, drawing=None))
        features = [reply.features[:1] for reply in replies]
        seeds = range(len(drawings), len(drawings) + len(part))
        pictures = chat.draw_batch(features, seeds=seeds)
        for task, first, drawn in zip(part, features, pictures, strict=True):
            if first:
                drawings.append(_scored(task, first[0], drawn[0], attributes))
            else:
                drawings.append(Drawing(task, None, None, dict.fromkeys(attributes, False)))
    return drawings


def redrawn(decoder: OpenedDecoder, drawings: list[Drawing]) -> list[Drawing]:
    """What another decoder draws from the features of each drawing, and what is right in that.

    Where the model drew nothing, there is nothing to draw.
    """
    features = [drawing.features for drawing in drawings if drawing.features is not None]
    pictures = iter(decoder.draw(torch.stack(features)) if features else ())
    return [
        drawing
        if drawing.features is None
        else _scored(drawing.task, drawing.features, next(pictures), tuple(drawing.right))
        for drawing in drawings
    ]


def _scored(
    task: Task, features: Tensor, picture: Image.Image, attributes: tuple[str, ...]
) -> Drawing:
    right = score(picture, task.scene)
    return Drawing(task, features, picture, {name: right[name] for name in attributes})


def question_accuracy(answers: list[Answer]) -> tuple[float, dict[str, float]]:
    """Share of exactly right answers, in all and per attribute."""
    per_attribute = {}
    for attribute in QUESTIONS:
        asked = [a.right for a in answers if a.task.attribute == attribute]
        per_attribute[attribute] = sum(asked) / len(asked)
    return sum(a.right for a in answers) / len(answers), per_attribute


def drawing_scores(drawings: list[Drawing]) -> dict:
    """How many drawings have every attribute right and how many each one, as counts, the mean over
    attributes of the shares of right ones, and the first request as an example."""
    attributes = {name: sum(d.right[name] for d in drawings) for name in drawings[0].right}
    request = drawings[0].task.sample.turns[0].text
    return {
        "example": request.replace(IMAGE_PLACEHOLDER, "[picture] "),
        "drawings": len(drawings),
        "all_right": sum(all(d.right.values()) for d in drawings),
        "attributes": attributes,
        "mean_of_attributes": sum(attributes.values()) / len(attributes) / len(drawings),
    }


def checker_accuracy(tasks: list[Task]) -> float:
    """Share of real pictures whose every attribute the pixel checker reads right."""
    right = [all(score(_drawn(task), task.scene).values()) for task in tasks]
    return sum(right) / len(right)


def _drawn(task: Task) -> Image.Image:
    """The real picture of what a task asks to draw."""
    return opened(task.sample.images[-1])


@torch.no_grad()
def visual_cosines(
    chat: Assistant, tasks: list[Task], training_tasks: list[Task]
) -> tuple[float, float]:
    """Teacher-forced cosine on the drawings' targets, and that of predicting the mean token.

    The mean is taken per token position over `training_tasks`.
    """
    device = chat.model.projector.linear_1.weight.device
    documents = [chat.encoder.encode(task.sample) for task in tasks]
    row = pack_row(documents, sum(map(len, documents)), chat.model.config.pad_id)
    encoder = chat.model.encoder
    batch = Batch.of(row, encoder, device)
    losses, targets = batch_losses(chat.model, batch, TargetCounts.of([row]))
    pictures = [_drawn(task) for task in training_tasks]
    known = encoder(encoder.preprocess(pictures).to(device))
    mean = F.normalize(known.mean(0), dim=-1)  # [tokens, C]
    return 1 - losses.visual.item(), (targets * mean).sum(-1).mean().item()
