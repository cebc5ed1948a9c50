"""The scores of a trained cell, on held-out tasks that are the same for all."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch.nn.functional as F
from torch import Tensor

from metamorph.data.toy.tasks import Task
from metamorph.decoder.kinds import open_decoder
from metamorph.evaluation.checker import ATTRIBUTES
from metamorph.evaluation.scene_answers import answer_questions, conversation, question_accuracy
from metamorph.evaluation.scene_drawings import (
    LONGEST_TEXT,
    Drawing,
    drawing_scores,
    drawn_picture,
    redrawn,
)
from metamorph.evaluation.teacher_forcing import visual_cosines
from metamorph.evaluation.toy_tasks import caption_tasks, tasks_of
from metamorph.generation.assistant import Assistant
from metamorph.generation.settings import AnswerSettings
from metamorph.quickstart.run import ONE_PASS_DECODER
from metamorph.study.cells import Cell
from metamorph.study.figure import (
    DRAWINGS_MADE,
    DRAWINGS_RIGHT,
    QUESTIONS_RIGHT,
    ZOOMS_RIGHT,
    about,
)
from metamorph.study.samples import without_close_up
from metamorph.study.scale import Scale

GRID = 4  # tokens a side that the shipped decoder draws from


def scores_of(model: Path, cell: Cell, scale: Scale) -> dict[str, float]:
    """Shares of right answers and of drawings, and mean cosines of what was to be drawn."""
    chat = Assistant.from_pretrained(model)
    answers = answer_questions(chat, tasks_of("question", scale.questions))
    accuracy, by_attribute = question_accuracy(answers)
    captions = caption_tasks(scale.drawings)
    drawings = drawings_of(chat, captions)
    drawn = drawing_scores(drawings)
    cosines = visual_cosines(
        chat,
        [task.sample for task in captions],
        [drawn_picture(task) for task in caption_tasks(scale.drawings, "train")],
    )
    scores = {
        QUESTIONS_RIGHT: accuracy,
        **{about(name): share for name, share in by_attribute.items()},
        DRAWINGS_MADE: fmean(drawing.features is not None for drawing in drawings),
        DRAWINGS_RIGHT: drawn["all_right"] / drawn["drawings"],
        **{f"drawn {k} right": n / drawn["drawings"] for k, n in drawn["attributes"].items()},
        "cosine of predicted features": fmean(cosines.model),
        "cosine of the mean feature": fmean(cosines.mean_baseline),
    }
    if "zoom" in dict(cell.amounts):
        zooms = [spoken(task) for task in tasks_of("zoom", scale.zooms)]
        scores[ZOOMS_RIGHT] = fmean(answer.right for answer in answer_questions(chat, zooms))
    return scores


def drawings_of(chat: Assistant, tasks: list[Task]) -> list[Drawing]:
    """What the shipped decoder draws of what a model of any grid predicts."""
    tokens = chat.model.config.tokens_per_image
    settings = AnswerSettings(tokens + LONGEST_TEXT, drawing=None)
    replies = chat.generate([conversation(task) for task in tasks], settings)
    undrawn = dict.fromkeys(ATTRIBUTES, False)
    asked = [
        Drawing(task, pooled(reply.features[0]) if reply.features else None, None, undrawn)
        for task, reply in zip(tasks, replies, strict=True)
    ]
    decoder = open_decoder(ONE_PASS_DECODER)
    decoder.set_progress_bar_config(disable=True)
    return redrawn(decoder, asked)


def pooled(features: Tensor) -> Tensor:
    """Features [tokens, C] of a square grid as the decoder's [16, C]: means of neighbours, of unit
    length. Those of 16 tokens are left as they are."""
    side = round(len(features) ** 0.5)
    if side == GRID:
        return features
    grid = features.T.unflatten(1, (side, side))[None]  # [1, C, side, side]
    return F.normalize(F.adaptive_avg_pool2d(grid, GRID)[0].flatten(1).T, dim=-1)


def spoken(task: Task) -> Task:
    """A task of zoom-then-answer that is right by its words, whether it shows the close-up or
    not."""
    return replace(task, sample=without_close_up(task.sample))
