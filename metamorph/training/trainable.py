"""Which parameters a stage trains.

Align trains the projector and the two image token rows; instruct trains everything but the encoder
(paper section 3).
"""

import torch
from torch import Tensor

from metamorph.model.unified import MetaMorph
from metamorph.training.parallel import local_part, local_rows
from metamorph_kernels import send


def choose_trainable(model: MetaMorph, stage: str) -> None:
    """Sets `requires_grad` for a stage. In align the token tables are trained, too: see
    `mask_frozen_rows`."""
    model.requires_grad_(False)
    if stage == "language":
        model.language.requires_grad_(True)
    elif stage == "instruct":
        model.requires_grad_(True)
        model.encoder.requires_grad_(False)
    elif stage == "align":
        model.projector.requires_grad_(True)
        for table in token_tables(model):
            table.requires_grad_(True)
    else:
        raise ValueError(f"stage must be language, align or instruct, got {stage!r}")


def token_tables(model: MetaMorph) -> list[Tensor]:
    """The input and the output matrix [V, H], or the one that is both."""
    tables = [model.language.model.embed_tokens.weight, model.language.output_weight]
    return tables[:1] if tables[0] is tables[1] else tables


def frozen_rows(model: MetaMorph) -> list[Tensor]:
    """For each token table, which of its rows that are held here are none of the two image tokens'
    ([rows, 1], bool)."""
    ids = torch.tensor([model.config.image_start_id, model.config.image_end_id])
    masks = []
    for table in token_tables(model):
        held = local_rows(table)
        rows = torch.arange(held.start, held.stop)
        masks.append(send(~torch.isin(rows, ids)[:, None], local_part(table).device))
    return masks


def mask_frozen_rows(model: MetaMorph, others: list[Tensor]) -> None:
    """Zeroes the gradients of all other rows of the token tables, as align asks for."""
    gradients = [table.grad for table in token_tables(model) if table.grad is not None]
    for gradient, rows in zip(gradients, others, strict=True):
        local_part(gradient).masked_fill_(rows, 0.0)
