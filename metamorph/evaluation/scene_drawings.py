"""What a model draws of toy scenes, and which attributes an exact checker reads right in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from metamorph.data.images import opened
from metamorph.data.toy.scenes import IMAGE_SIZE
from metamorph.data.toy.tasks import Task
from metamorph.decoder.kinds import OpenedDecoder
from metamorph.evaluation.checker import ATTRIBUTES, score
from metamorph.evaluation.options import DEFAULT, Options
from metamorph.evaluation.scene_answers import conversation, in_batches_of_tasks
from metamorph.generation.assistant import Assistant
from metamorph.generation.settings import AnswerSettings
from metamorph.pixels import Square
from metamorph.tokens import IMAGE_PLACEHOLDER

LONGEST_TEXT = 48  # tokens beside those of one picture


@dataclass(frozen=True)
class Drawing:
    task: Task
    features: Tensor | None  # [tokens, C]; None if the model drew nothing
    picture: Image.Image | None
    right: dict[str, bool]  # per attribute


def draw_scenes(
    chat: Assistant,
    tasks: list[Task],
    attributes: tuple[str, ...] = ATTRIBUTES,
    options: Options = DEFAULT,
) -> list[Drawing]:
    """What the model draws, and which attributes are right."""
    settings = drawing_answer(chat)
    drawings = []
    for part in in_batches_of_tasks(tasks):
        replies = chat.generate([conversation(task) for task in part], settings)
        features = [reply.features[:1] for reply in replies]
        pictures = draw_features(chat, features, len(drawings), options)
        for task, first, drawn in zip(part, features, pictures, strict=True):
            if first:
                drawings.append(_scored(task, first[0], drawn[0], attributes))
            else:
                drawings.append(Drawing(task, None, None, dict.fromkeys(attributes, False)))
    return drawings


def draw_features(
    chat: Assistant, features: Sequence[Sequence[Tensor]], number: int, options: Options
) -> list[list[Image.Image]]:
    """Pictures of the features [tokens, C] of answers, of which the first has this number, in the
    size that the checker reads."""
    first = options.seed + number
    seeds = range(first, first + len(features))
    drawn = chat.draw_batch(features, seeds=seeds, **options.drawing.arguments())
    square = Square(IMAGE_SIZE)
    return [[square(picture) for picture in pictures] for pictures in drawn]


def drawing_answer(chat: Assistant) -> AnswerSettings:
    """Room for one picture and a few words; the picture as features."""
    return AnswerSettings(chat.model.config.tokens_per_image + LONGEST_TEXT, drawing=None)


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
    right = [all(score(drawn_picture(task), task.scene).values()) for task in tasks]
    return sum(right) / len(right)


def drawn_picture(task: Task) -> Image.Image:
    """The real picture of what a task asks to draw."""
    return opened(task.sample.images[-1])
