"""The stages that train the language model: language (text only), align and instruct.

Align trains the projector and the two image token rows; instruct trains everything but the
encoder (paper section 3; learning rates in appendix A).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from metamorph.config import RunConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.lanes import open_lanes
from metamorph.data.packing import PackedRow
from metamorph.errors import SampleError, UserError
from metamorph.libraries import require
from metamorph.model.assemble import assemble
from metamorph.model.fused_parts import choose_parts, install_parts
from metamorph.model.precision import MULTIPLE, autocast, check_precision, convert_to_float8
from metamorph.model.unified import MetaMorph
from metamorph.model.weights import read_tokenizer
from metamorph.training.batch import Batch
from metamorph.training.loop import run_steps
from metamorph.training.loss import Losses, TargetCounts, vpit_losses
from metamorph.training.run_folder import find_checkpoint, resolve_device
from metamorph.training.telemetry import MeanBaseline, Meter
from metamorph_kernels.transfer import send


def open_model(config: RunConfig) -> tuple[MetaMorph, object]:
    """The model and tokenizer that a run starts from, in fp32: ``precision`` says what the
    arithmetic is, the weights that the optimizer moves are always whole.

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
    return model.float(), tokenizer


def choose_trained(model: MetaMorph, stage: str) -> None:
    """Sets ``requires_grad`` for a stage; in align, all but the two image rows get no gradient."""
    model.requires_grad_(False)
    if stage == "language":
        model.language.requires_grad_(True)
    elif stage == "instruct":
        model.requires_grad_(True)
        model.vision.requires_grad_(False)
    elif stage == "align":
        model.projector.requires_grad_(True)
        rows = torch.tensor([model.config.image_start_id, model.config.image_end_id])
        for weight in {model.language.model.embed_tokens.weight, model.language.output_weight}:
            weight.requires_grad_(True)
            weight.register_hook(lambda gradient: _only_rows(gradient, send(rows, gradient.device)))
    else:
        raise ValueError(f"stage must be language, align or instruct, got {stage!r}")


def _only_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    kept = torch.zeros_like(gradient)
    return kept.index_copy(0, rows, gradient.index_select(0, rows))


def make_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW; decay only for matrices outside the embeddings, so that untouched rows stay put."""
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            (plain if parameter.ndim < 2 or is_embedding else decayed).append(parameter)
    training = config.training
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    options = {"lr": training.learning_rate, "betas": (training.beta1, training.beta2)}
    if training.optimizer == "apex":
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, **options, adam_w_mode=True)
    return torch.optim.AdamW(groups, **options, fused=True)


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


class LanguageStage:
    """Model, data and optimizer of one of the three stages, for ``run_steps``."""

    def __init__(self, config: RunConfig):
        self.config, self.device = config, resolve_device(config.device)
        training = config.training
        fp8 = training.precision == "fp8"
        if training.optimizer == "apex":  # what is missing should be known before a model is loaded
            require("training.optimizer: apex", ["apex"], self.device)
        check_precision(training.precision, training.fp8_backend, self.device)
        if fp8 and config.data.row_length % MULTIPLE:  # tokens add up in the gradients of weights
            raise UserError(
                f"data.row_length: precision fp8 needs a multiple of {MULTIPLE}, "
                f"got {config.data.row_length}"
            )
        model, self.tokenizer = open_model(config)
        choose_trained(model, config.stage)
        self.module = model.to(self.device)
        self.float8 = convert_to_float8(model, training.fp8_backend) if fp8 else None
        self.optimizer = make_optimizer(model, config)
        encoder = ChatEncoder(self.tokenizer, model.config.tokens_per_image)
        self.lanes = open_lanes(
            config.data, config.seed, encoder, model.config.pad_id, model.vision,
            training.rows_per_step,
        )  # fmt: skip
        self.baseline = MeanBaseline(
            model.config.tokens_per_image, model.config.visual_width, self.device
        )
        self.meter = Meter()
        self.rows: list[PackedRow] = []

    def accumulate_gradients(self, step: int) -> dict[str, Tensor | float]:
        training = self.config.training
        self.rows = self.lanes.next_rows()
        counts = TargetCounts.of(self.rows)
        text_loss = visual_loss = baseline = torch.zeros((), device=self.device)
        for row in self.rows:
            batch = Batch.of(row, self.module.vision, self.device)
            with autocast(training.precision, self.device):
                losses, targets = batch_losses(self.module, batch, counts)
                total = losses.text + training.visual_coefficient * losses.visual
            total.backward()
            text_loss = text_loss + losses.text.detach()
            visual_loss = visual_loss + losses.visual.detach()
            if len(targets):
                share = len(row.visual_rows) / counts.visual
                baseline = baseline + share * self.baseline.update(targets)
            self.meter.add(row.used)
        used = sum(row.used for row in self.rows)
        values = {
            "text_loss": text_loss,
            "packing_efficiency": used / (len(self.rows) * self.config.data.row_length),
        }
        if counts.visual:
            values |= {"visual_cosine": 1 - visual_loss, "mean_baseline_cosine": baseline}
        return values

    def read_meters(self) -> dict[str, float]:
        return {"tokens_per_second": self.meter.read()}

    def describe(self, values: dict) -> str:
        parts = [f"text {values['text_loss']:.3f}"]
        if "visual_cosine" in values:
            parts.append(f"cosine {values['visual_cosine']:.3f}")
            parts.append(f"(mean {values['mean_baseline_cosine']:.3f})")
        parts.append(f"{values['tokens_per_second']:.0f} tok/s")
        parts.append(f"packed {values['packing_efficiency']:.0%}")
        return ", ".join(parts)

    def last_samples(self) -> list[str]:
        return [sample for row in self.rows for sample in row.sample_ids]

    def skipped(self) -> dict[str, tuple[int, str]]:
        return self.lanes.skips().by_cause()

    def state_dict(self) -> dict:
        return {"lanes": self.lanes.state_dict(), "baseline": self.baseline.total.tolist()}

    def load_state_dict(self, state: dict) -> None:
        try:
            self.lanes.load_state_dict(state["lanes"])
        except SampleError as error:
            raise UserError(f"resume: the data changed since the checkpoint: {error}") from error
        self.baseline.total = torch.tensor(state["baseline"], device=self.device)


def train(config: RunConfig) -> Path:
    """Runs a stage and returns the folder of the trained model, ``output/model``.

    Writes ``config.yaml``, ``metrics.jsonl`` and checkpoints beside it. Raises ``UserError`` for
    what a user can mend, ``Stopped`` if interrupted.
    """
    find_checkpoint(config)  # an unusable run folder should be known before a model is loaded
    stage = LanguageStage(config)
    folder = run_steps(config, stage)
    stage.module.save_pretrained(folder / "model", stage.tokenizer)
    return folder / "model"
