"""Which parameters a stage trains.

Align trains the projector and the input rows of the image tokens, and of other tokens that had to
be added; instruct trains everything but the encoder (paper section 3).
"""

import torch
from torch import Tensor

from metamorph.model.unified import MetaMorph
from metamorph.training.parallel import local_part, local_rows
from metamorph_kernels import send


def choose_trainable(model: MetaMorph, stage: str) -> None:
    """Sets `requires_grad` for a stage. In align the table of input rows is trained, too: see
    `mask_frozen_rows`."""
    model.requires_grad_(False)
    if stage == "language":
        model.language.requires_grad_(True)
    elif stage == "instruct":
        model.requires_grad_(True)
        model.encoder.requires_grad_(False)
    elif stage == "align":
        model.projector.requires_grad_(True)
        input_rows(model).requires_grad_(True)
    else:
        raise ValueError(f"stage must be language, align or instruct, got {stage!r}")


def input_rows(model: MetaMorph) -> Tensor:
    """The matrix [V, H] of input rows. Where embeddings are tied it is the output matrix, too: then
    a row is one vector, which both of its uses move."""
    return model.language.model.embed_tokens.weight


def frozen_rows(model: MetaMorph) -> Tensor:
    """Which of the input rows that are held here are of no added token ([rows, 1], bool)."""
    table = input_rows(model)
    held = local_rows(table)
    added = torch.tensor(model.config.added_ids)
    frozen = ~torch.isin(torch.arange(held.start, held.stop), added)[:, None]
    return send(frozen, local_part(table).device)


def mask_frozen_rows(model: MetaMorph, frozen: Tensor) -> None:
    """Zeroes the gradients of frozen input rows, as align asks for."""
    gradient = input_rows(model).grad
    if gradient is not None:
        local_part(gradient).masked_fill_(frozen, 0.0)
