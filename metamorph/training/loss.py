"""The VPiT loss of one packed row: text cross-entropy plus visual regression; and its means over
samples that a run does not train on."""

from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.config.keys import VisualLoss
from metamorph.data.documents import Documents
from metamorph.data.lanes import Lanes
from metamorph.data.packing import TargetCounts
from metamorph.errors import UserError
from metamorph.model.precision import autocast
from metamorph.model.unified import MetaMorph
from metamorph.model.vision import VisionEncoder
from metamorph.monitor.telemetry import MeanBaseline
from metamorph.processes import add_up, rank, totals, world_size
from metamorph.training.batch import Batch
from metamorph.training.measuring import measuring
from metamorph_kernels import cosine_loss, linear_cross_entropy


@dataclass(frozen=True)
class Losses:
    """Scalars that add up over the rows of a step to the means over all of its targets."""

    text: Tensor  # cross-entropy, nats
    visual: Tensor  # 1 - cosine, or the mean absolute difference
    cosine_distance: Tensor  # 1 - cosine in any case, without gradient


def vpit_losses(
    model: MetaMorph,
    states: Tensor,
    targets: Tensor,
    batch: Batch,
    counts: TargetCounts,
    visual_loss: VisualLoss = "cosine",
) -> Losses:
    """Losses of one row, divided by the counts of the step (paper section 3, equation of VPiT).

    Args:
        states: [T, H] after the final norm.
        targets: [Nr, C] unit vectors, the features that `visual_rows` predict.
        batch: with the indices of the supervised rows.
        counts: targets of the whole step. Without any of a kind its loss is exactly 0, with
            finite zero gradients.
        visual_loss: `cosine` is 1 - cosine; `l1` the mean, over C, of the absolute difference of
            the target and what the vision head says, which is not made a unit vector.
    """
    text_sum = linear_cross_entropy(
        states.index_select(0, batch.text_rows),
        model.language.output_weight,
        batch.text_labels,
        reduction="sum",
    )
    predicting = states.index_select(0, batch.visual_rows)
    if visual_loss == "cosine":
        visual_sum = model.visual_loss(predicting, targets)
        distance_sum = visual_sum.detach()
    else:
        prediction = model.vision_head(predicting)
        visual_sum = (prediction.float() - targets.float()).abs().mean(-1).sum()
        distance_sum = cosine_loss(prediction.detach(), targets, reduction="sum")
    visual_count = max(counts.visual, 1)
    return Losses(
        text_sum / max(counts.text, 1), visual_sum / visual_count, distance_sum / visual_count
    )


class Validation:
    """Measures the same samples again and again: each once, in rows that the processes share as
    they share those of training. The random numbers of training are left alone."""

    def __init__(self, config: RunConfig, documents: Documents, pad_id: int, device: torch.device):
        self.config, self.device = config, device
        rows = config.training.rows_per_step
        workers = config.data.workers
        self.samples = len(documents)
        self.lanes = Lanes(documents, pad_id, rows, rank(), world_size(), workers, self.samples)
        self.start = self.lanes.state_dict()
        limit = config.training.validation_rows
        self.rounds = -(-limit // rows) if limit else None

    def measure(
        self, step_losses: nn.Module, vision: VisionEncoder, baseline: MeanBaseline
    ) -> dict[str, float]:
        """Means over all targets of all processes, which all call this.

        Args:
            step_losses: the model with its losses, called as in training but without dropout.
            baseline: of the targets that training has seen, which is scored beside the model.

        Raises `UserError` if no sample can be used.
        """
        with measuring(step_losses):
            sums, text, visual = self._sums(step_losses, vision, baseline)
        skips, used = self.lanes.all_skips(), totals([self.lanes.used()])[0]
        if not text:
            raise UserError(
                f"data.validation: none of {used} samples can be used; first of each cause: "
                f"{skips.examples}"
            )
        text_sum, visual_sum, distance_sum, baseline_sum = add_up(sums).tolist()
        skipped = skips.counts.total()
        values: dict[str, float] = {
            "validation_samples": used - skipped,
            "validation_skipped": skipped,
        }
        values["validation_text_loss"] = values["validation_loss"] = text_sum / text
        if visual:
            training, loss = self.config.training, visual_sum / visual
            values["validation_loss"] += training.visual_coefficient * loss
            values["validation_visual_cosine"] = 1 - distance_sum / visual
            if training.visual_loss == "l1":
                values["validation_visual_l1"] = loss
            values["validation_mean_baseline_cosine"] = baseline_sum / visual
        return values

    def _sums(
        self, step_losses: nn.Module, vision: VisionEncoder, baseline: MeanBaseline
    ) -> tuple[Tensor, int, int]:
        """Text losses, visual losses, cosine distances and baseline cosines [4] of this process,
        and how many text and visual targets all have."""
        sums, text, visual = torch.zeros(4, device=self.device), 0, 0
        self.lanes.load_state_dict(self.start)
        for _ in islice(count(), self.rounds):
            if totals([self.lanes.used()])[0] == self.samples:
                break
            rows = self.lanes.next_rows()
            counts = TargetCounts.of(rows)
            for row in rows:
                batch = Batch.of(row, vision, self.device)
                with autocast(self.config.training.precision, self.device):
                    text_share, *visual_shares, targets = step_losses(batch, counts)
                score = baseline.score(targets) if len(targets) else sums.new_zeros(())
                shares = [text_share * counts.text]
                shares += [share * counts.visual for share in visual_shares]
                sums += torch.stack([*shares, score * len(row.visual_rows)])
            text, visual = text + counts.text, visual + counts.visual
        return sums, text, visual
