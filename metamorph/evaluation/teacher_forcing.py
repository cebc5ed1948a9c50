"""What a model predicts of samples that it is shown whole: no token of its own comes before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metamorph.data.conversation import Sample
from metamorph.data.packing import PackedRow, pack_row
from metamorph.generation.assistant import Assistant
from metamorph.model.precision import autocast
from metamorph_kernels import key_intervals

BATCH = 50  # samples in a row


@dataclass(frozen=True)
class VisualCosines:
    """Of each sample the mean over the visual tokens that it has to predict: of what the model
    predicts, and of the mean token at each place of a picture, which looks at nothing."""

    model: list[float]
    mean_baseline: list[float]


@torch.no_grad()
def visual_cosines(
    chat: Assistant, samples: Sequence[Sample], known: Sequence[Image.Image]
) -> VisualCosines:
    """Of the features that responses hold. The mean tokens are those of the pictures `known`."""
    model, found = chat.model, VisualCosines([], [])
    encoder = model.encoder
    seen = encoder(encoder.preprocess([*known]).to(chat.device))  # [known, tokens, C]
    mean = F.normalize(seen.float().mean(0), dim=-1)  # [tokens, C]
    for start in range(0, len(samples), BATCH):
        documents = [chat.encoder.encode(sample) for sample in samples[start : start + BATCH]]
        row = pack_row(documents, sum(map(len, documents)), model.config.pad_id)
        features = encoder(encoder.preprocess([*row.images]).to(chat.device))
        states = _states(chat, row, features)
        rows, wanted = row.visual_rows.to(chat.device), row.visual_targets.to(chat.device)
        with autocast(chat.precision, chat.device):
            predicted = model.predict_visual(states[rows])  # [Nr, C]
        targets = features.flatten(0, 1)[wanted].float()
        cosines = (predicted * targets).sum(-1)
        baseline = (targets * mean[wanted % len(mean)]).sum(-1)
        pictures = [sum(document.is_target) for document in documents]
        found.model.extend(_means(cosines, pictures, len(mean)))
        found.mean_baseline.extend(_means(baseline, pictures, len(mean)))
    return found


def _states(chat: Assistant, row: PackedRow, features: Tensor) -> Tensor:
    """[T, H] of a packed row whose pictures have `features` [images, tokens, C]."""
    device = chat.device
    with autocast(chat.precision, device):
        return chat.model(
            row.token_ids.to(device),
            row.positions.to(device),
            key_intervals(row.document_lengths, device=device),
            features,
            row.visual_positions.to(device),
        )


def _means(values: Tensor, pictures: Sequence[int], tokens: int) -> list[float]:
    """The mean of each sample's values, `tokens` of them a picture."""
    parts = values.split([count * tokens for count in pictures])
    return [part.mean().item() for part in parts]
