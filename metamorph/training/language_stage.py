"""The stages that train the language model: language (text only), align and instruct.

Align trains the projector and the input rows of added tokens; instruct trains everything but the
encoder (paper section 3; learning rates in appendix A).
"""

from copy import copy
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.config.keys import VisualLoss
from metamorph.costs.flops import Workload
from metamorph.costs.sharding import mesh_shape, units
from metamorph.costs.step import describe_flops, describe_memory, step_costs
from metamorph.data.conversation import ChatEncoder
from metamorph.data.describe import describe_row
from metamorph.data.lanes import Lanes, open_documents
from metamorph.data.opening import open_source, open_validation
from metamorph.data.packing import PackedRow, TargetCounts
from metamorph.data.sources import Source
from metamorph.errors import SampleError, UserError
from metamorph.model.describe import describe_parameters, describe_precision
from metamorph.model.float8_gather import check_shares, scale_weights
from metamorph.model.opening import open_model
from metamorph.model.precision import autocast, convert_to_float8
from metamorph.model.transformer_engine_linear import mark_microbatch
from metamorph.model.unified import MetaMorph
from metamorph.monitor.sample_sheet import SampleSheet
from metamorph.monitor.telemetry import LanguageTelemetry
from metamorph.processes import add_up, gather, merged, rank, world_size
from metamorph.training.batch import Batch, shown_pictures
from metamorph.training.draws import Draws
from metamorph.training.lora import (
    LANGUAGE_LAYERS,
    add_adapters,
    merge_adapters,
    save_adapters,
)
from metamorph.training.loss import Losses, Validation, vpit_losses
from metamorph.training.optimizer import make_optimizer, samples_to_use
from metamorph.training.parallel import place, reduce_gradients, save_model, whole_copy
from metamorph.training.trainable import choose_trainable, frozen_rows, mask_frozen_rows

ROW_TITLES = ("first row", "second row")  # those that a plan shows


def batch_losses(
    model: MetaMorph, batch: Batch, counts: TargetCounts, visual_loss: VisualLoss = "cosine"
) -> tuple[Losses, Tensor]:
    """Forward of one packed row: its share of the step's losses, as `vpit_losses` says, and its
    target features [images, tokens, C]."""
    features = batch.visual_features(model.vision)  # [images, tokens, C], without gradient
    inputs = features
    if batch.shown is not None:
        inputs = features * batch.shown[:, None, None].to(features.dtype)
    states = model(
        batch.token_ids, batch.positions, batch.intervals, inputs, batch.visual_positions
    )
    targets = features.flatten(0, 1).index_select(0, batch.visual_targets)
    losses = vpit_losses(model, states, targets, batch, counts, visual_loss)
    return losses, targets.unflatten(0, (-1, model.config.tokens_per_image))


class StepLosses(nn.Module):
    """A model with its losses: the whole forward of a step, which is what FSDP has to wrap."""

    def __init__(self, model: MetaMorph, visual_loss: VisualLoss):
        super().__init__()
        self.model, self.visual_loss = model, visual_loss

    def forward(self, batch: Batch, counts: TargetCounts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text loss, visual loss, cosine distance and target features, as `batch_losses` gives
        them; a tuple, whose tensors FSDP finds."""
        losses, targets = batch_losses(self.model, batch, counts, self.visual_loss)
        return losses.text, losses.visual, losses.cosine_distance, targets


class LanguageStage:
    """Model, data and optimizer of one of the three stages, a `metamorph.training.stage.Stage`."""

    def __init__(self, config: RunConfig, device: torch.device, source: Source | None = None):
        self.config, self.device = config, device
        training = config.training
        self.module, self.tokenizer = open_model(config, device)
        model = self.module
        vision, tokens_per_image = model.encoder, model.config.tokens_per_image
        choose_trainable(model, config.stage)
        if training.lora_rank:
            add_adapters(model.language, config, LANGUAGE_LAYERS)
        self.float8 = None
        self.in_8_bits: tuple[str, ...] = ()  # layers whose weights FSDP gathers so
        self.is_scaled = False  # for good, as they are frozen
        if training.precision == "fp8":
            self.float8 = convert_to_float8(
                model, training.fp8_backend, device, training.fp8_recipe, training.fp8_all_gather
            )
            if training.fp8_all_gather:
                self.in_8_bits = self.float8.converted
                _, shards = mesh_shape(world_size(), config.parallel.shard)
                check_shares(model, self.in_8_bits, shards)
        self.step_losses = StepLosses(model, training.visual_loss)
        place(self.step_losses, model, config, device)
        self.frozen_rows = frozen_rows(model) if config.stage == "align" else None
        self.optimizer = make_optimizer(model, config)
        encoder = ChatEncoder(self.tokenizer, tokens_per_image, model.config.prompt_images)
        if source is None:
            source = open_source(config.data, config.seed, portion="training")
        documents = open_documents(config.data, source, encoder, vision)
        self.lanes = Lanes(
            documents,
            model.config.pad_id,
            training.rows_per_step,
            rank(),
            world_size(),
            config.data.workers,
            samples_to_use(training, len(documents)),
        )
        self.validation = None
        if config.data.validation:
            held_out = copy(documents)  # with the same features
            held_out.source = open_validation(config.data, config.seed)
            self.validation = Validation(config, held_out, model.config.pad_id, device)
        self.rows: list[PackedRow] = []  # of the last step, as what follows
        self.targets: list[Tensor] = []  # features [images, tokens, C] that each row predicts
        self.counts = TargetCounts(0, 0)
        self.telemetry = LanguageTelemetry(config, model, self.lanes, device)
        self.sheet = None
        if config.monitor.samples_every:
            self.sheet = SampleSheet(config, self.lanes.source, model, self.tokenizer)

    @property
    def kept(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def begin(self, number: int) -> None:
        """Nothing: every step trains the same."""

    def stepped(self, number: int, bad: Tensor) -> None:
        """Weights that are gathered in 8 bits have other scales now, if they are trained."""
        if self.in_8_bits and not self.is_scaled:
            scale_weights(self.module)
            self.is_scaled = self.config.stage == "align"

    def forward_backward(self, step: int) -> dict[str, Tensor]:
        """Gradients of an optimizer step, and its `text_loss`, `visual_loss` and `cosine_distance`,
        means over the targets of all processes."""
        training, tokens = self.config.training, self.module.config.tokens_per_image
        self.rows, self.targets = self.lanes.next_rows(), []
        self.counts = counts = TargetCounts.of(self.rows)
        if not counts.tokens:  # of a run of epochs: without an end, a lane says so itself
            skips = self.lanes.all_skips()
            raise UserError(
                f"data: none of {skips.tried} samples can be used; first of each cause: "
                f"{skips.examples}"
            )
        losses = torch.zeros(3, device=self.device)  # text, visual, cosine distance
        for number, (lane, row) in enumerate(zip(self.lanes.streams, self.rows, strict=True), 1):
            draw = Draws(self.config.seed, step, [lane])
            shown = shown_pictures(row, tokens, training.visual_input_dropout, draw)
            batch = Batch.of(row, self.module.encoder, self.device, shown)
            reduce_gradients(self.step_losses, now=number == len(self.rows))
            if self.float8 is not None and len(self.rows) > 1:
                mark_microbatch(self.module, number == 1)
            with autocast(training.precision, self.device):
                text, visual, distance, targets = self.step_losses(batch, counts)
                total = text + training.visual_coefficient * visual
            total.backward()
            losses += torch.stack([text.detach(), visual.detach(), distance])
            self.targets.append(targets)
        if self.float8 is not None:
            mark_microbatch(self.module, None)  # the optimizer will move the weights
        if self.frozen_rows is not None:
            mask_frozen_rows(self.module, self.frozen_rows)
        text_loss, visual_loss, distance = add_up(losses)
        return {"text_loss": text_loss, "visual_loss": visual_loss, "cosine_distance": distance}

    def observe(self, losses: dict[str, Tensor]) -> dict[str, Tensor | float]:
        """What to log of the last step. All processes call this."""
        return self.telemetry.values(losses, self.rows, self.targets, self.counts)

    def validate(self) -> dict[str, float]:
        """Means over the samples of `data.validation`, none without. All processes call this."""
        if self.validation is None:
            return {}
        with self.telemetry.meter.paused():
            baseline = self.telemetry.baseline
            return self.validation.measure(self.step_losses, self.module.encoder, baseline)

    def draw_samples(self) -> Image.Image | None:
        """A sheet of drawings of the model as it is, in the first process. All must call this."""
        model = self.module
        if torch.distributed.is_initialized():
            precision = self.config.training.precision
            model = whole_copy(model, torch.float32 if precision == "fp32" else torch.bfloat16)
        return None if model is None or self.sheet is None else self.sheet.draw(model)

    def last_samples(self) -> list[str]:
        return [sample for row in self.rows for sample in row.sample_ids]

    def state_dict(self) -> dict:
        lanes = merged(gather(self.lanes.state_dict()))
        return {"lanes": lanes, "baseline": self.telemetry.baseline.total.tolist()}

    def load_state_dict(self, state: dict) -> None:
        try:
            self.lanes.load_state_dict(state["lanes"])
        except SampleError as error:
            raise UserError(f"resume: the data changed since the checkpoint: {error}") from error
        self.telemetry.baseline.total = torch.tensor(state["baseline"], device=self.device)

    def describe_plan(self) -> list[str]:
        """Parameters, arithmetic, operations and memory of a step, and the first rows."""
        config, model = self.config, self.module
        rows = self.lanes.next_rows()
        mean = Workload.mean(rows, model.config.tokens_per_image)
        costs = step_costs(config, model, units(model, self.in_8_bits), mean, len(rows))
        return [
            describe_parameters(model, config.stage),
            describe_precision(config.training.precision, self.float8),
            describe_flops(costs, len(rows)),
            describe_memory(costs),
            *(
                describe_row(title, row, self.tokenizer)
                for title, row in zip(ROW_TITLES, rows, strict=False)
            ),
        ]

    def save(self, folder: Path) -> Path:
        """Writes `folder/model`, with LoRA also `folder/adapter`. All processes call this."""
        if self.config.training.lora_rank:
            template = self.tokenizer.chat_template
            save_adapters(self.module, folder / "adapter", self.config, template)
            merge_adapters(self.module.language)
        save_model(self.module, folder / "model", self.tokenizer)
        return folder / "model"

    def close(self) -> None:
        """Ends the processes that prepare data."""
        self.lanes.close()
        if self.validation is not None:
            self.validation.lanes.close()
