"""What a training step reports beside its losses: the visual baseline, speed and memory."""

import resource
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph.config import RunConfig
from metamorph.costs.flops import (
    Flops,
    Workload,
    encoder_flops,
    language_flops,
    trained_parts,
)
from metamorph.costs.hardware import GPUS
from metamorph.costs.roofline import GIGA, TERA
from metamorph.data.lanes import Lanes
from metamorph.data.packing import PackedRow, TargetCounts
from metamorph.model.unified import MetaMorph
from metamorph.processes import add_up


class Telemetry(Protocol):
    """What a stage reports of some steps together."""

    def read_meters(self) -> dict[str, float]:
        """Further values for a log line, such as speed, since the last call."""

    def describe(self, values: dict[str, float]) -> str:
        """A log line's values in a few words, for the progress bar."""


class MeanBaseline:
    """Cosine reached by always predicting the mean feature of each token position.

    A visual cosine means nothing beside this number: it is what a model gets that ignores its
    prompt. The means run over `total`, the sum of all targets seen so far; a step is scored
    before its targets are added.
    """

    def __init__(self, tokens_per_image: int, width: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(tokens_per_image, width, device=device)

    def score(self, targets: Tensor) -> Tensor:
        """The baseline's mean cosine on targets [images, tokens, C], unit vectors."""
        mean = F.normalize(self.total, dim=-1)
        return (targets.float() * mean).sum(-1).mean()


class Meter:
    """Amounts a second since the last reading, of this process: of one GPU."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.started = time.perf_counter()
        self.amounts: Counter[str] = Counter()

    def add(self, **amounts: float) -> None:
        self.amounts.update(amounts)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leaves out the time that the body takes."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def read(self) -> Counter[str]:
        """What was added, by name, divided by the time; 0 for what was not."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = Counter({name: amount / seconds for name, amount in self.amounts.items()})
        self.reset()
        return rates


class StepWork:
    """What steps of packed rows amount to, for `Meter`: tokens, pictures, operations.

    Operations are those of `flops.FORMULA`: of the model, without what is computed twice to save
    memory. The encoder's are apart.
    """

    def __init__(self, model: MetaMorph):
        self.model, self.config = model, model.config

    @cached_property
    def trained(self) -> frozenset[str]:
        """The parts that a backward computes gradients for: they stay the same through a run."""
        return trained_parts(self.model)

    def of(self, rows: list[PackedRow]) -> dict[str, float]:
        works = [Workload.of(row, self.config.tokens_per_image) for row in rows]
        work = sum(works, start=Workload())
        visual = work.images * self.config.tokens_per_image
        encoded = sum(len(row.images) for row in rows if row.features is None)
        flops = language_flops(self.config, work, self.trained)
        encoder = encoder_flops(self.model.encoder, encoded)
        return {
            "text_tokens": sum(row.used for row in rows) - visual,
            "visual_tokens": visual,
            "images": work.images,
            "teraflops": sum(part.total for part in flops.values()) / TERA,
            "encoder_teraflops": encoder.total / TERA,
        }


def peak_teraflops(device: torch.device, precision: str) -> float | None:
    """The dense peak of a GPU by its data sheet, or None for a device that is in no table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper().replace("-", " ").split()
    if "PCIE" in name or "NVL" in name:  # slower than the SXM of the same name in the table
        return None
    known = {key: gpu for key, gpu in GPUS.items() if key.upper() in name}
    return next((gpu.teraflops.get(precision) for gpu in known.values()), None)


def peak_gigabytes(device: torch.device) -> float:
    """The most memory that was held so far: of a GPU by tensors, of the host by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIGA
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA


def _utilization(rates: Mapping[str, float], peak: float | None) -> dict[str, float]:
    """`mfu` and `encoder_mfu`, shares of a GPU's peak, where that is known."""
    names = {"mfu": "teraflops", "encoder_mfu": "encoder_teraflops"}
    return {} if peak is None else {name: rates[of] / peak for name, of in names.items()}


class LanguageTelemetry:
    """What language, align and instruct report of a step, from what the step left behind."""

    def __init__(self, config: RunConfig, model: MetaMorph, lanes: Lanes, device: torch.device):
        self.lanes, self.device = lanes, device
        self.row_tokens = config.training.rows_per_step * config.data.row_length
        self.baseline = MeanBaseline(
            model.config.tokens_per_image, model.config.visual_width, device
        )
        self.visual_loss = config.training.visual_loss
        self.work, self.meter = StepWork(model), Meter()
        self.peak = peak_teraflops(device, config.training.precision)
        self.waited = 0.0  # for data, until the last step

    def values(
        self,
        losses: dict[str, Tensor],
        rows: list[PackedRow],
        targets: list[Tensor],
        counts: TargetCounts,
    ) -> dict[str, Tensor | float]:
        """What to log of a step, on the device. All processes call this.

        Args:
            losses: `text_loss`, `visual_loss` and `cosine_distance`.
            rows: those of this process.
            targets: of each, the features [images, tokens, C] that it predicts.
            counts: the targets of the whole step.
        """
        score = torch.zeros((), device=self.device)
        seen = torch.zeros_like(self.baseline.total)
        for row, features in zip(rows, targets, strict=True):
            if len(features):
                share = len(row.visual_rows) / counts.visual
                score = score + share * self.baseline.score(features)
                seen += features.float().sum(0)
        sums = add_up(torch.cat([score[None], seen.flatten()]))  # one message
        score, seen = sums[0], sums[1:].view_as(seen)
        # A bad step changes nothing, here either: one NaN would stay for good.
        self.baseline.total += torch.where(seen.isfinite().all(), seen, 0.0)
        waited, self.waited = self.lanes.wait_seconds - self.waited, self.lanes.wait_seconds
        self.meter.add(**self.work.of(rows), wait=waited)
        values: dict[str, Tensor | float] = {
            "text_loss": losses["text_loss"],
            "packing_efficiency": counts.tokens / self.row_tokens,
        }
        if counts.visual:
            cosine = 1 - losses["cosine_distance"]
            values |= {
                "visual_cosine": cosine,
                "mean_baseline_cosine": score,
                "visual_cosine_over_mean": cosine - score,
            }
            if self.visual_loss == "l1":
                values["visual_l1"] = losses["visual_loss"]
        return values

    def read_meters(self) -> dict[str, float]:
        """Speed since the last call, and memory."""
        rates = self.meter.read()
        meters = {
            "tokens_per_second": rates["text_tokens"] + rates["visual_tokens"],
            "text_tokens_per_second": rates["text_tokens"],
            "visual_tokens_per_second": rates["visual_tokens"],
            "images_per_second": rates["images"],
            "data_wait_share": rates["wait"],
            "teraflops": rates["teraflops"],
            "encoder_teraflops": rates["encoder_teraflops"],
            "memory_gigabytes": peak_gigabytes(self.device),
        }
        return meters | _utilization(rates, self.peak)

    def describe(self, values: dict[str, float]) -> str:
        """A log line's values in a few words, for the progress bar."""
        parts = [f"text {values['text_loss']:.3f}"] if "text_loss" in values else []
        if "visual_cosine" in values:
            parts.append(f"cosine {values['visual_cosine']:.3f}")
            parts.append(f"(mean {values['mean_baseline_cosine']:.3f})")
        if "visual_l1" in values:
            parts.append(f"L1 {values['visual_l1']:.3g}")
        parts.append(f"{values['tokens_per_second']:.0f} tok/s")
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.0%} + encoder {values['encoder_mfu']:.0%}")
        parts.append(f"packed {values['packing_efficiency']:.0%}")
        return ", ".join(parts)


LOSSES = ("denoising_loss", "distillation_loss")  # of pictures


class PictureTelemetry:
    """What a decoder's stage reports: its loss, speed, memory, and how well a GPU is used.

    `flops`: of a picture, by part. Those of the frozen parts, which have no backward, are told
    apart, as the encoder's are in `LanguageTelemetry`.
    """

    def __init__(self, flops: Mapping[str, Flops], precision: str, device: torch.device):
        self.device, self.meter = device, Meter()
        self.peak = peak_teraflops(device, precision)
        trained = [part.total for part in flops.values() if part.backward]
        frozen = [part.total for part in flops.values() if not part.backward]
        self.teraflops, self.encoder_teraflops = sum(trained) / TERA, sum(frozen) / TERA

    def step_done(self, images: int, wait: float) -> None:
        """A step of so many pictures of this process, which took `wait` seconds to be had."""
        self.meter.add(
            images=images, wait=wait,
            teraflops=images * self.teraflops, encoder_teraflops=images * self.encoder_teraflops,
        )  # fmt: skip

    def read_meters(self) -> dict[str, float]:
        """Speed since the last call, and memory."""
        rates = self.meter.read()
        meters = {
            "images_per_second": rates["images"],
            "data_wait_share": rates["wait"],
            "teraflops": rates["teraflops"],
            "encoder_teraflops": rates["encoder_teraflops"],
            "memory_gigabytes": peak_gigabytes(self.device),
        }
        return meters | _utilization(rates, self.peak)

    def describe(self, values: dict[str, float]) -> str:
        losses = [values[name] for name in LOSSES if name in values]
        loss = f"loss {losses[0]:.3g}, " if losses else ""
        return f"{loss}{values['images_per_second']:.0f} img/s"
