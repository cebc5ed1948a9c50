"""A packed row on the device that trains on it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metamorph.data.packing import PackedRow
from metamorph.model.vision import VisionEncoder
from metamorph.training.draws import Draws
from metamorph_kernels import Intervals, key_intervals, send


@dataclass(frozen=True)
class Batch:
    """What a step reads of one `PackedRow`. All that the host must know is planned by then:
    forward and backward never ask the device."""

    pixels: Tensor | None  # [images, 3, S, S], or None where features are cached
    token_ids: Tensor  # this and all below as in PackedRow
    positions: Tensor
    intervals: Intervals
    visual_positions: Tensor
    text_rows: Tensor
    text_labels: Tensor
    visual_rows: Tensor
    visual_targets: Tensor
    features: Tensor | None = None  # [images, tokens, C] where they are cached
    shown: Tensor | None = None  # [images] fp32: 0 for a picture that the model does not see

    @classmethod
    def of(
        cls,
        row: PackedRow,
        vision: VisionEncoder,
        device: torch.device,
        shown: Tensor | None = None,
    ) -> "Batch":
        """Plans, preprocesses and sends a row; on a GPU the copies run while the host goes on.

        `shown` are those of `shown_pictures`, where the model does not see all."""
        pixels = features = None
        if row.features is None:
            pixels = send(vision.preprocess(list(row.images)), device)
        else:
            features = send(row.features, device)
        return cls(
            pixels=pixels,
            token_ids=send(row.token_ids, device),
            positions=send(row.positions, device),
            intervals=key_intervals(row.document_lengths, row.bidirectional_spans, device),
            visual_positions=send(row.visual_positions, device),
            text_rows=send(row.text_rows, device),
            text_labels=send(row.text_labels, device),
            visual_rows=send(row.visual_rows, device),
            visual_targets=send(row.visual_targets, device),
            features=features,
            shown=None if shown is None else send(shown, device),
        )

    def visual_features(self, vision: VisionEncoder | None) -> Tensor:
        """[images, tokens, C]: the cached ones, or what the frozen encoder says now.

        ValueError where there are neither features nor an encoder.
        """
        if self.features is not None:
            return self.features
        if vision is None or self.pixels is None:
            raise ValueError("vision: features are not cached, so the row needs the encoder")
        return vision(self.pixels)


def shown_pictures(row: PackedRow, tokens: int, dropout: float, draw: Draws) -> Tensor | None:
    """[images] fp32 of a row, `tokens` each: 0 for a share `dropout` of the predicted ones, else 1;
    None where none is to be hidden.

    What hides a picture's first tokens from its next ones makes these, too, come from the words
    before the picture: word dropout (arXiv 1511.06349), of whole pictures, since one token tells
    most of its neighbours. `draw` is that of the row's lane.
    """
    if not dropout:
        return None
    predicted = row.visual_targets[::tokens] // tokens
    shown = torch.ones(len(row.visual_positions) // tokens)
    [chance] = draw(torch.rand, (1, len(predicted)))
    shown[predicted] = (chance >= dropout).float()
    return shown
