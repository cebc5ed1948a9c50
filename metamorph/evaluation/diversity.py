"""How much drawings of the same prompt differ. The features that a model predicts are the same each
time, so what differs is the decoder's noise and nothing else."""

from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metamorph.data.toy.scenes import caption
from metamorph.data.toy.tasks import Task
from metamorph.evaluation.checker import ATTRIBUTES, score
from metamorph.evaluation.options import Options
from metamorph.evaluation.scene_answers import conversation, in_batches_of_tasks
from metamorph.evaluation.scene_drawings import draw_features, drawing_answer
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.toy_tasks import caption_tasks
from metamorph.generation.assistant import Assistant

DRAWS = 4  # of each prompt


def noise_diversity(chat: Assistant, options: Options) -> list[Scored]:
    """`DRAWS` drawings of each caption, of other noise: the mean `distance` between two of them,
    1 - cosine of what the encoder sees of each; and whether all of them are right.

    `to another prompt` is the distance of the first to the first of the caption before, if that is
    of another scene: how far apart drawings are that ought to differ. Captions of which nothing is
    drawn are left out.
    """
    asked: list[tuple[Task, Tensor]] = []
    for part in in_batches_of_tasks(caption_tasks(options.count, source=options.source)):
        replies = chat.generate([conversation(task) for task in part], drawing_answer(chat))
        asked += [
            (task, reply.features[0])
            for task, reply in zip(part, replies, strict=True)
            if reply.features
        ]
    found: list[Scored] = []
    before: tuple[str, Tensor] | None = None
    for number, (task, predicted) in enumerate(asked):
        again = draw_features(chat, [[predicted]] * DRAWS, number * DRAWS, options)
        pictures = [picture for [picture] in again]
        features = _encoded(chat, pictures)
        distances = [1 - _cosine(a, b) for a, b in combinations(features, 2)]
        right = [score(picture, task.scene) for picture in pictures]
        scores: dict[str, bool | float] = {
            "distance": fmean(distances),
            "all of them right": all(read[name] for read in right for name in ATTRIBUTES),
        }
        shown = caption(task.scene)
        if before is not None and before[0] != shown:
            scores["to another prompt"] = 1 - _cosine(features[0], before[1])
        sample, before = task.sample, (shown, features[0])
        found.append(Scored(sample.id, sample.turns[0].text, scores, cluster=task.combination))
    return found


@torch.no_grad()
def _encoded(chat: Assistant, pictures: list[Image.Image]) -> Tensor:
    """Features [pictures, tokens, C], unit vectors."""
    encoder = chat.model.encoder
    return F.normalize(encoder(encoder.preprocess(pictures).to(chat.device)).float(), dim=-1)


def _cosine(one: Tensor, other: Tensor) -> float:
    return (one * other).sum(-1).mean().item()
