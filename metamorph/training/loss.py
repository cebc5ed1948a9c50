"""The VPiT loss of one packed row: text cross-entropy plus visual cosine regression."""

from dataclasses import dataclass

from torch import Tensor

from metamorph.data.packing import PackedRow
from metamorph.model.unified import MetaMorph
from metamorph_kernels import linear_cross_entropy


@dataclass(frozen=True)
class TargetCounts:
    """Targets of a whole optimizer step, over all of its rows (and ranks)."""

    text: int
    visual: int

    @classmethod
    def of(cls, rows: list[PackedRow]) -> "TargetCounts":
        return cls(
            text=sum(len(row.text_rows) for row in rows),
            visual=sum(len(row.visual_rows) for row in rows),
        )


@dataclass(frozen=True)
class Losses:
    """Scalars that add up over the rows of a step to the means over all of its targets."""

    text: Tensor  # cross-entropy, nats
    visual: Tensor  # 1 - cosine


def vpit_losses(
    model: MetaMorph,
    states: Tensor,
    features: Tensor,
    text_rows: Tensor,
    text_labels: Tensor,
    visual_rows: Tensor,
    visual_targets: Tensor,
    counts: TargetCounts,
) -> Losses:
    """Losses of one row, divided by the counts of the step (paper section 3, equation of VPiT).

    Args:
        states: [T, H] after the final norm.
        features: [images, tokens, C] unit vectors; they are targets without gradient.
        text_rows, text_labels, visual_rows, visual_targets: indices planned by ``pack_row``.
        counts: targets of the whole step. Without any of a kind its loss is exactly 0, with
            finite zero gradients.
    """
    text_sum = linear_cross_entropy(
        states.index_select(0, text_rows),
        model.language.output_weight,
        text_labels,
        reduction="sum",
    )
    targets = features.flatten(0, 1).index_select(0, visual_targets)
    visual_sum = model.visual_loss(states.index_select(0, visual_rows), targets)
    return Losses(text_sum / max(counts.text, 1), visual_sum / max(counts.visual, 1))
