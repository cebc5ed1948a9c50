"""The stages that train the language model: language (text only), align and instruct.

Align trains the projector and the two image token rows; instruct trains everything but the
encoder (paper section 3; learning rates in appendix A).
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.lanes import open_lanes
from metamorph.data.packing import PackedRow
from metamorph.data.skips import Skips
from metamorph.data.sources import Source
from metamorph.errors import SampleError, UserError
from metamorph.model.assemble import assemble
from metamorph.model.fused_parts import choose_parts, install_parts
from metamorph.model.precision import MULTIPLE, autocast, check_precision, convert_to_float8
from metamorph.model.unified import MetaMorph
from metamorph.model.weights import read_tokenizer
from metamorph.training.batch import Batch
from metamorph.training.loop import run_steps
from metamorph.training.lora import add_adapters, check_lora, merge_adapters, save_adapters
from metamorph.training.loss import Losses, TargetCounts, vpit_losses
from metamorph.training.optimizer import check_optimizer, make_optimizer
from metamorph.training.parallel import (
    check_parallel,
    place,
    reduce_gradients,
    save_model,
    whole_copy,
)
from metamorph.training.processes import (
    add_up,
    gather,
    merged,
    process_group,
    rank,
    totals,
    wait_for_all,
    world_size,
)
from metamorph.training.run_folder import find_checkpoint, resolve_device
from metamorph.training.sample_sheet import SampleSheet, check_samples
from metamorph.training.telemetry import (
    MeanBaseline,
    Meter,
    StepWork,
    peak_gigabytes,
    peak_teraflops,
)
from metamorph.training.trained import choose_trained, image_rows_only, other_rows


def open_model(config: RunConfig) -> tuple[MetaMorph, object]:
    """The model and tokenizer that a run starts from, on the CPU in the dtype of its files.

    Raises ``UserError`` if the config names no start, or a library that cannot be used.
    """
    start, device = config.model, resolve_device(config.device)
    parts = choose_parts(start, device)  # what is missing should be known before weights are read
    if start.folder:
        model = MetaMorph.from_pretrained(start.folder)
        tokenizer = read_tokenizer(start.folder)
    elif start.language and start.vision:
        torch.manual_seed(config.seed)  # projector and vision head start from scratch
        model, tokenizer = assemble(start.language, start.vision, grid=start.grid)
    else:
        raise UserError("model: give either model.folder, or model.language and model.vision")
    if model.vision is None:
        raise UserError(f"model.folder: {start.folder} has no encoder/ folder")
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    install_parts(model, parts, device, dtype)
    return model, tokenizer


def batch_losses(model: MetaMorph, batch: Batch, counts: TargetCounts) -> tuple[Losses, Tensor]:
    """Forward of one packed row: its share of the step's losses, and its target features
    [images, tokens, C]."""
    features = batch.visual_features(model.vision)  # [images, tokens, C], without gradient
    states = model(
        batch.token_ids, batch.positions, batch.intervals, features, batch.visual_positions
    )
    targets = features.flatten(0, 1).index_select(0, batch.visual_targets)
    losses = vpit_losses(model, states, targets, batch, counts)
    return losses, targets.unflatten(0, (-1, model.config.tokens_per_image))


class StepLosses(nn.Module):
    """A model with its losses: the whole forward of a step, which is what FSDP has to wrap."""

    def __init__(self, model: MetaMorph):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, counts: TargetCounts) -> tuple[Tensor, Tensor, Tensor]:
        """Text loss, visual loss and target features, as ``batch_losses`` gives them."""
        losses, targets = batch_losses(self.model, batch, counts)
        return losses.text, losses.visual, targets


class LanguageStage:
    """Model, data and optimizer of one of the three stages, for ``run_steps``."""

    def __init__(self, config: RunConfig, source: Source | None = None):
        self.config, self.device = config, resolve_device(config.device)
        training = config.training
        check_parallel(config, self.device)
        check_optimizer(config, self.device)  # before a model is loaded, as what follows
        check_lora(config, self.device)
        check_precision(training.precision, training.fp8_backend, self.device)
        fp8 = training.precision == "fp8"
        if fp8 and config.data.row_length % MULTIPLE:  # tokens add up in the gradients of weights
            raise UserError(
                f"data.row_length: precision fp8 needs a multiple of {MULTIPLE}, "
                f"got {config.data.row_length}"
            )
        self.module, self.tokenizer = open_model(config)
        model = self.module
        choose_trained(model, config.stage)
        if training.lora_rank:
            add_adapters(model, config)
        self.float8 = convert_to_float8(model, training.fp8_backend, self.device) if fp8 else None
        self.step_losses = StepLosses(model)
        place(self.step_losses, model, config, self.device)
        self.other_rows = other_rows(model) if config.stage == "align" else []
        self.optimizer = make_optimizer(model, config)
        self.lanes = open_lanes(
            config.data,
            config.seed,
            ChatEncoder(self.tokenizer, model.config.tokens_per_image),
            model.config.pad_id,
            model.vision,
            training.rows_per_step,
            rank(),
            world_size(),
            source,
        )
        self.sheet = None
        if config.monitor.samples_every:
            check_samples(config)
            self.sheet = SampleSheet(config, self.lanes.source, model, self.tokenizer)
        self.baseline = MeanBaseline(
            model.config.tokens_per_image, model.config.visual_width, self.device
        )
        self.work, self.meter = StepWork(model), Meter()
        self.peak = peak_teraflops(self.device, training.precision)
        self.waited = 0.0  # for data, until the last step
        self.rows: list[PackedRow] = []

    def accumulate_gradients(self, step: int) -> dict[str, Tensor | float]:
        training = self.config.training
        self.rows = self.lanes.next_rows()
        own = TargetCounts.of(self.rows)
        used = sum(row.used for row in self.rows)
        text_count, visual_count, used = totals([own.text, own.visual, used])
        counts = TargetCounts(text_count, visual_count)
        text_loss = visual_loss = baseline = torch.zeros((), device=self.device)
        seen = torch.zeros_like(self.baseline.total)
        for number, row in enumerate(self.rows, start=1):
            batch = Batch.of(row, self.module.vision, self.device)
            reduce_gradients(self.step_losses, now=number == len(self.rows))
            with autocast(training.precision, self.device):
                text, visual, targets = self.step_losses(batch, counts)
                total = text + training.visual_coefficient * visual
            total.backward()
            text_loss = text_loss + text.detach()
            visual_loss = visual_loss + visual.detach()
            if len(targets):
                share = len(row.visual_rows) / counts.visual
                baseline = baseline + share * self.baseline.score(targets)
                seen += targets.float().sum(0)
        if self.other_rows:
            image_rows_only(self.module, self.other_rows)
        # One message for all that every process must know of the others.
        sums = add_up(torch.cat([torch.stack([text_loss, visual_loss, baseline]), seen.flatten()]))
        text_loss, visual_loss, baseline = sums[:3]
        seen = sums[3:].view_as(seen)
        # A bad step changes nothing, here either: one NaN would stay for good.
        self.baseline.total += torch.where(seen.isfinite().all(), seen, 0.0)
        waited, self.waited = self.lanes.wait_seconds - self.waited, self.lanes.wait_seconds
        self.meter.add(**self.work.of(self.rows), wait=waited)
        values = {
            "text_loss": text_loss,
            "packing_efficiency": used / (training.rows_per_step * self.config.data.row_length),
        }
        if counts.visual:
            values |= {
                "visual_cosine": 1 - visual_loss,
                "mean_baseline_cosine": baseline,
                "visual_cosine_over_mean": 1 - visual_loss - baseline,
            }
        return values

    def read_meters(self) -> dict[str, float]:
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
        if self.peak is not None:
            meters["mfu"] = rates["teraflops"] / self.peak
            meters["encoder_mfu"] = rates["encoder_teraflops"] / self.peak
        return meters

    def describe(self, values: dict) -> str:
        parts = [f"text {values['text_loss']:.3f}"] if "text_loss" in values else []
        if "visual_cosine" in values:
            parts.append(f"cosine {values['visual_cosine']:.3f}")
            parts.append(f"(mean {values['mean_baseline_cosine']:.3f})")
        parts.append(f"{values['tokens_per_second']:.0f} tok/s")
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.0%} + encoder {values['encoder_mfu']:.0%}")
        parts.append(f"packed {values['packing_efficiency']:.0%}")
        return ", ".join(parts)

    def draw_samples(self) -> Image.Image | None:
        """A sheet of drawings of the model as it is, in the first process. All must call this."""
        model = self.module
        if torch.distributed.is_initialized():
            precision = self.config.training.precision
            model = whole_copy(model, torch.float32 if precision == "fp32" else torch.bfloat16)
        return None if model is None else self.sheet.draw(model)

    def last_samples(self) -> list[str]:
        return [sample for row in self.rows for sample in row.sample_ids]

    def skipped(self) -> Skips:
        return self.lanes.skips()

    def state_dict(self) -> dict:
        lanes = merged(gather(self.lanes.state_dict()))
        return {"lanes": lanes, "baseline": self.baseline.total.tolist()}

    def load_state_dict(self, state: dict) -> None:
        try:
            self.lanes.load_state_dict(state["lanes"])
        except SampleError as error:
            raise UserError(f"resume: the data changed since the checkpoint: {error}") from error
        self.baseline.total = torch.tensor(state["baseline"], device=self.device)


def train(config: RunConfig, source: Source | None = None) -> Path:
    """Runs a stage and returns the folder of the trained model, ``output/model``.

    ``source`` gives the samples in place of the one that ``config.data`` names.

    Writes ``config.yaml``, ``metrics.jsonl`` and checkpoints beside it. Started by ``torchrun``, it
    is one of several processes that do so together. Raises ``UserError`` for what a user can mend,
    ``Stopped`` if interrupted.
    """
    with process_group(resolve_device(config.device)):
        find_checkpoint(config)  # an unusable run folder should be known before a model is loaded
        stage = LanguageStage(config, source)
        try:
            folder = run_steps(config, stage)
        finally:
            stage.lanes.close()
        if config.training.lora_rank:
            save_adapters(stage.module, folder / "adapter", config)
            merge_adapters(stage.module)
        save_model(stage.module, folder / "model", stage.tokenizer)
        wait_for_all()
    return folder / "model"
