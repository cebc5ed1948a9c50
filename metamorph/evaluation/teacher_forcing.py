"""What a model predicts of samples that it is shown whole: no token of its own comes before."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from metamorph.data.conversation import Document, Sample
from metamorph.data.packing import PackedRow, pack_row
from metamorph.generation.assistant import Assistant
from metamorph.model.language import Llama
from metamorph.model.precision import autocast
from metamorph.model.unified import interval_row
from metamorph_kernels import key_intervals, linear_cross_entropy

ROW = 4096  # tokens at once, or one document
PICTURES = 50  # at once


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
    mean = mean_token(chat, known)
    for documents in _rows(map(chat.encoder.encode, samples)):
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


def mean_token(chat: Assistant, pictures: Sequence[Image.Image]) -> Tensor:
    """[tokens, C], unit vectors: the mean at each place of a picture. A large encoder has no room
    for all of them at once."""
    encoder, sums = chat.model.encoder, []
    for start in range(0, len(pictures), PICTURES):
        pixels = encoder.preprocess([*pictures[start : start + PICTURES]])
        sums.append(encoder(pixels.to(chat.device)).float().sum(0))
    return F.normalize(torch.stack(sums).sum(0), dim=-1)


def _rows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """In order, as many as `ROW` has room for at a time."""
    row: list[Document] = []
    for document in documents:
        if row and sum(map(len, row)) + len(document) > ROW:
            yield row
            row = []
        row.append(document)
    if row:
        yield row


def _states(chat: Assistant, row: PackedRow, features: Tensor) -> Tensor:
    """[T, H] of a packed row whose pictures have `features` [images, tokens, C]."""
    device = chat.device
    with autocast(chat.precision, device):
        return chat.model(
            row.token_ids.to(device),
            row.positions.to(device),
            key_intervals(row.document_lengths, row.bidirectional_spans, device),
            features,
            row.visual_positions.to(device),
        )


@torch.no_grad()
def text_losses(
    language: Llama, documents: Sequence[Document], pad_id: int, precision: str = "fp32"
) -> list[tuple[float, int]]:
    """Of each document without pictures the sum of the cross-entropies of its supervised tokens, in
    nats, and how many these are."""
    table = language.model.embed_tokens.weight
    found = []
    for part in _rows(documents):
        row = pack_row(part, sum(map(len, part)), pad_id)
        intervals = key_intervals(row.document_lengths, device=table.device)
        with autocast(precision, table.device):
            states = language(
                language.model.embed_tokens(row.token_ids.to(table.device)),
                row.positions.to(table.device),
                interval_row(intervals),
            )
            losses = linear_cross_entropy(
                states[row.text_rows.to(table.device)],
                language.output_weight,
                row.text_labels.to(table.device),
                reduction="none",
            )
        counts = [sum(document.supervised) for document in part]
        sums = [of.double().sum().item() for of in losses.split(counts)]
        found += zip(sums, counts, strict=True)
    return found


def _means(values: Tensor, pictures: Sequence[int], tokens: int) -> list[float]:
    """The mean of each sample's values, `tokens` of them a picture."""
    parts = values.split([count * tokens for count in pictures])
    return [part.mean().item() for part in parts]
