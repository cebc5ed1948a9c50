"""One loop for three stages: language (text only), align and instruct.

Align trains the projector and the two image token rows; instruct trains everything but the
encoder (paper section 3; learning rates in appendix A).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metamorph.config import RunConfig
from metamorph.data.conversation import ChatEncoder
from metamorph.data.packing import PackedRow, RowStream
from metamorph.data.sources import open_source
from metamorph.errors import Stopped, UserError
from metamorph.model.assemble import assemble
from metamorph.model.unified import MetaMorph
from metamorph.model.weights import read_tokenizer
from metamorph.training.checkpoint import load_checkpoint, save_checkpoint
from metamorph.training.loss import Losses, TargetCounts, vpit_losses
from metamorph.training.run_folder import (
    MetricsFile,
    StopSignal,
    prepare_run_folder,
    resolve_device,
)
from metamorph.training.schedule import learning_rate
from metamorph.training.telemetry import MeanBaseline, Meter
from metamorph_kernels import key_intervals


def open_model(config: RunConfig) -> tuple[MetaMorph, object]:
    """The model and tokenizer that a run starts from. Raises ``UserError`` if it names none."""
    start = config.model
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
    return model, tokenizer


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
            weight.register_hook(lambda gradient: _only_rows(gradient, rows.to(gradient.device)))
    else:
        raise ValueError(f"stage must be language, align or instruct, got {stage!r}")


def _only_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    kept = torch.zeros_like(gradient)
    return kept.index_copy(0, rows, gradient.index_select(0, rows))


def make_optimizer(module: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW; decay only for matrices outside the embeddings, so that untouched rows stay put."""
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_embedding = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            (plain if parameter.ndim < 2 or is_embedding else decayed).append(parameter)
    training = config.training
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        fused=True,
    )


def row_losses(
    model: MetaMorph, row: PackedRow, counts: TargetCounts, device: torch.device
) -> tuple[Losses, Tensor]:
    """Forward of one packed row: its share of the step's losses, and its target features."""
    pixels = model.vision.preprocess(list(row.images)).to(device, non_blocking=True)
    features = model.vision(pixels)  # [images, tokens, C], without gradient
    states = model(
        row.token_ids.to(device),
        row.positions.to(device),
        key_intervals(row.document_lengths, device=device),
        features,
        row.visual_positions.to(device),
    )
    targets = row.visual_targets.to(device)
    losses = vpit_losses(
        model, states, features, row.text_rows.to(device), row.text_labels.to(device),
        row.visual_rows.to(device), targets, counts,
    )  # fmt: skip
    tokens = model.config.tokens_per_image
    return losses, features.flatten(0, 1)[targets].unflatten(0, (-1, tokens))


def train(config: RunConfig) -> Path:
    """Runs a stage and returns the folder of the trained model, ``output/model``.

    Writes ``config.yaml``, ``metrics.jsonl`` and checkpoints beside it. An interrupted run that is
    resumed equals an uninterrupted one bit for bit on a CPU. Raises ``UserError`` for what a user
    can mend.
    """
    device = resolve_device(config.device)
    folder, checkpoint = prepare_run_folder(config)
    model, tokenizer = open_model(config)
    choose_trained(model, config.stage)
    model.to(device)
    optimizer = make_optimizer(model, config)
    encoder = ChatEncoder(tokenizer, model.config.tokens_per_image)
    stream = RowStream(
        open_source(config.data, config.seed), encoder, config.data.row_length, model.config.pad_id
    )
    baseline = MeanBaseline(model.config.tokens_per_image, model.config.visual_width, device)
    first_step = 0
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, model, optimizer)
        first_step = state["step"]
        stream.load_state_dict(state["stream"])
        baseline.total = torch.tensor(state["baseline"], device=device)

    training = config.training
    metrics, meter = MetricsFile(folder, first_step), Meter()
    trained = [p for p in model.parameters() if p.requires_grad]
    bar = tqdm(range(training.steps), initial=first_step, desc=config.stage, mininterval=1)

    def save(step: int) -> None:
        state = {"stream": stream.state_dict(), "baseline": baseline.total.tolist()}
        save_checkpoint(folder, step, model, optimizer, state, training.keep_checkpoints)

    with StopSignal() as stop:
        for step in range(first_step, training.steps):
            rate = learning_rate(step, training)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = [next(stream) for _ in range(training.rows_per_step)]
            counts = TargetCounts.of(rows)
            text_loss = visual_loss = baseline_sum = torch.zeros((), device=device)
            for row in rows:
                bf16 = training.precision == "bf16"
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    losses, targets = row_losses(model, row, counts, device)
                    total = losses.text + training.visual_coefficient * losses.visual
                total.backward()
                text_loss = text_loss + losses.text.detach()
                visual_loss = visual_loss + losses.visual.detach()
                if len(targets):
                    share = len(row.visual_rows) / counts.visual
                    baseline_sum = baseline_sum + share * baseline.update(targets)
                meter.add(row.used, config.data.row_length)
            norm = nn.utils.clip_grad_norm_(trained, training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()

            done = step + 1
            if done % training.log_every == 0 or done == training.steps:
                values = {
                    "text_loss": text_loss.item(),
                    "visual_cosine": 1 - visual_loss.item() if counts.visual else None,
                    "mean_baseline_cosine": baseline_sum.item() if counts.visual else None,
                    "gradient_norm": norm.item(),
                    "learning_rate": rate,
                    **meter.read(),
                }
                if not all(v is None or abs(v) < float("inf") for v in values.values()):
                    raise UserError(
                        f"step {done}: a loss or gradient is not finite ({values}); samples "
                        f"{[s for row in rows for s in row.sample_ids][:8]}. Look at these samples "
                        f"or lower the learning rate; the last checkpoint is untouched"
                    )
                metrics.write(step=done, **values, skipped=dict(stream.skipped))
                bar.set_postfix_str(describe(values), refresh=False)
            if done % training.checkpoint_every == 0 and done < training.steps:
                save(done)
            if stop.requested and done < training.steps:
                save(done)
                bar.close()
                raise Stopped(f"stopped after step {done} of {training.steps}")
    bar.close()
    for cause, count in stream.skipped.items():
        print(f"skipped {count} samples: {cause} (first: {stream.examples[cause]})")
    model.save_pretrained(folder / "model", tokenizer)
    return folder / "model"


def describe(values: dict) -> str:
    """The numbers of a step as one short line for the progress bar."""
    parts = [f"text {values['text_loss']:.3f}"]
    if values["visual_cosine"] is not None:
        parts.append(f"cosine {values['visual_cosine']:.3f}")
        parts.append(f"(mean {values['mean_baseline_cosine']:.3f})")
    parts.append(f"{values['tokens_per_second']:.0f} tok/s")
    parts.append(f"packed {values['packing_efficiency']:.0%}")
    return ", ".join(parts)
