"""The visual features that a model predicts of captions."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from metamorph.evaluation.held_out_pictures import HeldOutPictures, in_batches
from metamorph.generation.assistant import Assistant
from metamorph.generation.engine import EngineOptions
from metamorph.generation.messages import question
from metamorph.generation.settings import AnswerSettings

MOST_SLOTS = 16  # answers at once: each has a whole context in the cache
LONGEST_TEXT = 64  # tokens beside those of one picture


def predict(
    folder: Path, pictures: HeldOutPictures, device: torch.device, batch: int
) -> list[Tensor | None]:
    """Features [tokens, C], on the CPU, of the first picture in the model's answer to each caption;
    None where it draws none. Raises `UserError` for a folder that is no model."""
    model = Assistant.from_pretrained(
        folder, device, options=EngineOptions(slots=min(batch, MOST_SLOTS)), open_when_needed=True
    )
    settings = AnswerSettings(model.model.config.tokens_per_image + LONGEST_TEXT, drawing=None)
    predicted: list[Tensor | None] = []
    for asked in in_batches(tqdm(pictures, desc="predict", mininterval=1), batch):
        replies = model.generate([[question(one.request)] for one in asked], settings)
        for reply in replies:
            first = reply.features[:1]
            predicted.append(first[0].float().cpu() if first else None)
    return predicted
