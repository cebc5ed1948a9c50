"""Whether predicted features are those of the picture that was asked for, and of no other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph.data.toy.tasks import Task
from metamorph.evaluation.options import Options
from metamorph.evaluation.scene_answers import conversation, in_batches_of_tasks
from metamorph.evaluation.scene_drawings import drawing_answer, drawn_picture
from metamorph.evaluation.scored import Scored
from metamorph.evaluation.task_source import TOY, TaskSource
from metamorph.evaluation.toy_tasks import tasks_of
from metamorph.generation.assistant import Assistant

CANDIDATES = 50  # different scenes of the held-out split, of 56


@torch.no_grad()
def retrieve(chat: Assistant, options: Options) -> list[Scored]:
    """Ranks `CANDIDATES` pictures by the features that the model predicts of a caption: is the one
    that it is of the first, and 1 / its rank. Where nothing was predicted, neither is above 0."""
    tasks = distinct_tasks(CANDIDATES, options.source)
    encoder = chat.model.encoder
    pictures = encoder.preprocess([drawn_picture(task) for task in tasks])
    candidates = encoder(pictures.to(chat.device)).float()
    found = []
    for part in in_batches_of_tasks(tasks[: options.count]):
        replies = chat.generate([conversation(task) for task in part], drawing_answer(chat))
        for task, reply in zip(part, replies, strict=True):
            place = None
            if reply.features:
                predicted = reply.features[0].to(chat.device).unsqueeze(0)
                [place] = ranks(cosine_similarities(predicted, candidates), [len(found)])
            scores: dict[str, bool | float] = {
                "top-1": place == 1,
                "reciprocal rank": 0.0 if place is None else 1 / place,
            }
            name, request = task.sample.id, task.sample.turns[0].text
            found.append(Scored(name, request, scores, cluster=task.combination))
    return found


def distinct_tasks(count: int, source: TaskSource = TOY) -> list[Task]:
    """The first requests to draw held-out scenes that differ in more than jitter and ground."""
    seen = set()

    def is_new(task: Task) -> bool:
        scene = task.scene
        key = scene.shape, scene.colour, scene.size, scene.place, scene.count
        return key not in seen and not seen.add(key)

    return tasks_of("draw", count, wanted=is_new, source=source)


def cosine_similarities(features: Tensor, candidates: Tensor) -> Tensor:
    """[Q, N]: the mean over tokens of the cosine of features [Q, tokens, C] and [N, tokens, C]."""
    features, candidates = (F.normalize(of.float(), dim=-1) for of in (features, candidates))
    return torch.einsum("qtc,ntc->qn", features, candidates) / features.shape[1]


def ranks(similarities: Tensor, wanted: Sequence[int]) -> list[int]:
    """The place of the wanted candidate of each row [Q, N], from 1; behind all that are as similar,
    so that features which fit all alike find none."""
    columns = torch.tensor(wanted, device=similarities.device).unsqueeze(1)
    own = similarities.gather(1, columns)  # [Q, 1]
    return (similarities >= own).sum(1).tolist()


def chance(candidates: int) -> dict[str, float]:
    """What a ranking by lot is expected to score."""
    reciprocal = sum(1 / rank for rank in range(1, candidates + 1)) / candidates
    return {"top-1": 1 / candidates, "reciprocal rank": reciprocal}
