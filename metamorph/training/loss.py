"""The VPiT loss of one packed row: text cross-entropy plus visual cosine regression."""

from dataclasses import dataclass

from torch import Tensor

from metamorph.data.packing import TargetCounts
from metamorph.model.unified import MetaMorph
from metamorph.training.batch import Batch
from metamorph_kernels import linear_cross_entropy


@dataclass(frozen=True)
class Losses:
    """Scalars that add up over the rows of a step to the means over all of its targets."""

    text: Tensor  # cross-entropy, nats
    visual: Tensor  # 1 - cosine


def vpit_losses(
    model: MetaMorph,
    states: Tensor,
    targets: Tensor,
    batch: Batch,
    counts: TargetCounts,
) -> Losses:
    """Losses of one row, divided by the counts of the step (paper section 3, equation of VPiT).

    Args:
        states: [T, H] after the final norm.
        targets: [Nr, C] unit vectors, the features that `visual_rows` predict.
        batch: with the indices of the supervised rows.
        counts: targets of the whole step. Without any of a kind its loss is exactly 0, with
            finite zero gradients.
    """
    text_sum = linear_cross_entropy(
        states.index_select(0, batch.text_rows),
        model.language.output_weight,
        batch.text_labels,
        reduction="sum",
    )
    visual_sum = model.visual_loss(states.index_select(0, batch.visual_rows), targets)
    return Losses(text_sum / max(counts.text, 1), visual_sum / max(counts.visual, 1))
