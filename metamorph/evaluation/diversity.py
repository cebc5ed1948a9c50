"""How much drawings of the same prompt differ. The features that a model predicts are the same each
time, so what differs is the decoder's noise and nothing else."""

from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metamorph.evaluation.checker import ATTRIBUTES, score
from metamorph.evaluation.options import Options
from metamorph.evaluation.scene_drawings import draw_features, draw_scenes
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.toy_tasks import caption_tasks
from metamorph.generation.assistant import Assistant

DRAWS = 4  # of each prompt


def noise_diversity(chat: Assistant, options: Options) -> list[Scored]:
    """`DRAWS` drawings of each caption, of other noise: the mean `distance` between two of them,
    1 - cosine of what the encoder sees of each; and whether all of them are right.

    `to another prompt` is the distance of the first to the first of the caption before: how far
    apart drawings are that ought to differ. Captions of which nothing is drawn are left out.
    """
    tasks = caption_tasks(options.count, source=options.source)
    drawings = [
        one for one in draw_scenes(chat, tasks, options=options) if one.features is not None
    ]
    found, before = [], None
    for number, one in enumerate(drawings):
        assert one.features is not None
        again = draw_features(chat, [[one.features]] * DRAWS, number * DRAWS, options)
        pictures = [picture for [picture] in again]
        features = _encoded(chat, pictures)
        distances = [1 - _cosine(a, b) for a, b in combinations(features, 2)]
        right = [score(picture, one.task.scene) for picture in pictures]
        scores: dict[str, bool | float] = {
            "distance": fmean(distances),
            "all of them right": all(read[name] for read in right for name in ATTRIBUTES),
        }
        if before is not None:
            scores["to another prompt"] = 1 - _cosine(features[0], before)
        sample, before = one.task.sample, features[0]
        found.append(Scored(sample.id, sample.turns[0].text, scores))
    return found


@torch.no_grad()
def _encoded(chat: Assistant, pictures: list[Image.Image]) -> Tensor:
    """Features [pictures, tokens, C], unit vectors."""
    encoder = chat.model.encoder
    return F.normalize(encoder(encoder.preprocess(pictures).to(chat.device)).float(), dim=-1)


def _cosine(one: Tensor, other: Tensor) -> float:
    return (one * other).sum(-1).mean().item()
