"""What a run would need on many GPUs, planned on any machine, without weights or data.

metamorph train configs/metamorph_8b/instruct.yaml --dry-run --world-size 256 --gpu-type h100
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from metamorph.config import ModelConfig, RunConfig, TrainingConfig
from metamorph.costs.flops import PROJECTIONS, Workload, trained_parts
from metamorph.costs.hardware import ASSUMED, PUBLISHED, Gpu
from metamorph.costs.memory import Widths, block_bytes
from metamorph.costs.roofline import (
    ACTIVATION_PASSES,
    GIGA,
    RULES,
    TERA,
    Prediction,
    communication_seconds,
    compute_seconds,
    memory_seconds,
)
from metamorph.costs.sharding import (
    Traffic,
    Unit,
    fake_processes,
    mesh_shape,
    traffic,
    units,
)
from metamorph.costs.step import GIBI, Costs, describe_flops, describe_memory, step_costs
from metamorph.data.conversation import ChatEncoder
from metamorph.data.documents import Documents
from metamorph.data.opening import GENERATED, open_source
from metamorph.data.packing import RowStream
from metamorph.errors import UserError
from metamorph.model.describe import describe_parameters
from metamorph.model.float8_gather import check_shares
from metamorph.model.opening import check_positions
from metamorph.model.outline import outline
from metamorph.model.precision import choose_layers, choose_recipe
from metamorph.model.tokenizer import open_tokenizer
from metamorph.model.unified import MetaMorph, MetaMorphConfig
from metamorph.planning.assumed_samples import PACKED, assumed_row, describe_families
from metamorph.training.optimizer import Progress
from metamorph.training.parallel import make_mesh, shard
from metamorph.training.rules import check_plan
from metamorph.training.trainable import choose_trainable

PAPER_SAMPLES = 0.73  # a second and GPU: 16.07 million in less than a day on 256 H100s
LOOKED_AT = 8  # rows of data
LABELS = {
    "products": "matrix products",
    "attention": "attention",
    "encoder": "encoder",
    "activations": "norms and activations",
    "sharing": "gathers and reductions",
    "replicas": "sums over copies",
    "optimizer": "optimizer",
}


@dataclass(frozen=True)
class Rows:
    """The mean row that a plan counts with, the samples in it, and where that is from.

    `in_epoch`: samples of the data, where it was looked at.
    """

    work: Workload
    samples: float
    source: list[str]
    in_epoch: int | None = None


@dataclass(frozen=True)
class PlannedStep:
    """A step, and what it costs one of the GPUs. `sources`: where sizes are from, a line each;
    `parameters`: how many there are, in text."""

    model: MetaMorph
    sources: list[str]
    parameters: str
    rows: Rows
    units: list[Unit]
    costs: Costs


def plan_run(config: RunConfig, world_size: int, gpu: Gpu) -> str:
    """The plan of a run of any stage on `world_size` GPUs, in text. Raises `UserError` for a
    configuration that could not run on so many."""
    check_plan(config, world_size)
    if config.trains_decoder:
        from metamorph.planning.decoder import plan_decoder  # diffusers takes seconds

        return plan_decoder(config, world_size, gpu)
    return plan_world(config, world_size, gpu)


def plan_world(config: RunConfig, world_size: int, gpu: Gpu) -> str:
    """The plan of a language, align or instruct run on `world_size` GPUs, in text.

    Raises `UserError` for a configuration that could not run on so many.
    """
    training = config.training
    if training.precision not in gpu.teraflops:
        raise UserError(
            f"training.precision: {gpu.name} has no {training.precision}, "
            f"only {', '.join(gpu.teraflops)}"
        )
    replicas, sharing = mesh_shape(world_size, config.parallel.shard)
    rows_here = training.rows_per_step // world_size
    step = plan_step(config, world_size)
    costs, rows, found, model = step.costs, step.rows, step.units, step.model
    head = [
        f"plan of stage {config.stage} on {world_size} x {gpu.name}: {replicas} copies of the "
        f"weights, each shared by {sharing}",
        "  a prediction: nothing here was measured, nothing is trained or written",
        *(f"  {source}" for source in step.sources),
    ]
    widths = Widths.of(training, world_size > 1)
    reduced = Widths.of(training, False).weights
    sent = traffic(found, replicas, sharing, rows_here, widths.gathered, reduced)
    kept = block_bytes(model.config.language, "none", widths, PROJECTIONS in trained_parts(model))
    moved = costs.work.tokens * model.config.language.num_hidden_layers * kept
    states = costs.states
    updated = 2 * states["gradients"] + 2 * states["optimizer states"] + 2 * states["weights"]
    prediction = Prediction(
        **compute_seconds(
            costs.flops, costs.repeated, costs.encoder, training.precision, gpu, ASSUMED
        ),
        **communication_seconds(sent, replicas, sharing, gpu, ASSUMED),
        activations=memory_seconds(ACTIVATION_PASSES * moved, gpu, ASSUMED),
        optimizer=memory_seconds(updated, gpu, ASSUMED),
    )
    return "\n\n".join([
        "\n".join(head),
        step.parameters,
        describe_rows(rows, config, world_size),
        describe_flops(costs, rows_here),
        describe_memory(costs) + "\n" + _fits(costs, gpu),
        describe_traffic(sent),
        describe_prediction(prediction, costs, rows, config, world_size, gpu),
    ])  # fmt: skip


def plan_step(config: RunConfig, world_size: int, rows: Rows | None = None) -> PlannedStep:
    """An optimizer step of a language, align or instruct run on `world_size` GPUs, of rows like
    `rows`; of those that `mean_row` finds, if none are given.

    Raises `UserError` for sizes that are not known or do not fit.
    """
    if config.parallel.cpu_offload:
        raise UserError("parallel.cpu_offload: what it copies to and fro is not part of a plan")
    model, sources = outline(config.model)
    check_positions(config.data.row_length, model.config.language)
    choose_trainable(model, config.stage)
    rows = rows or mean_row(config, model.config)
    parameters = describe_parameters(model, config.stage)
    in_8_bits = []
    if config.training.fp8_all_gather:
        _, multiple = choose_recipe(config.training.fp8_backend, config.training.fp8_recipe)
        in_8_bits, _ = choose_layers(model, config.training.fp8_backend, multiple)
        check_shares(model, in_8_bits, mesh_shape(world_size, config.parallel.shard)[1])
    with fake_processes(world_size):
        if world_size > 1:
            mesh = make_mesh(config.parallel.shard, torch.device("cpu"))
            shard(model, model, mesh=mesh)
        found = units(model, in_8_bits)
    rows_here = config.training.rows_per_step // world_size
    costs = step_costs(config, model, found, rows.work, rows_here)
    return PlannedStep(model, sources, parameters, rows, found, costs)


def mean_row(config: RunConfig, model: MetaMorphConfig) -> Rows:
    """The first rows of the data where it and a tokenizer are there, else an assumption."""
    start = _start_with_tokenizer(config.model)
    data, length = config.data, config.data.row_length
    if start and (data.source in GENERATED or data.path and Path(data.path).exists()):
        tokenizer, _ = open_tokenizer(start)
        encoder = ChatEncoder(tokenizer, model.tokens_per_image, model.prompt_images)
        source = open_source(data, config.seed, portion="training")
        documents = Documents(source, encoder, length, too_long=data.too_long)
        stream = RowStream(documents, model.pad_id)
        seen = [next(stream) for _ in range(min(LOOKED_AT, config.training.rows_per_step))]
        work = Workload.mean(seen, model.tokens_per_image)
        samples = sum(len(row.sample_ids) for row in seen) / len(seen)
        source = [f"  as in the first {len(seen)} rows of the data"]
        return Rows(work, samples, source, len(documents))
    work, samples = assumed_row(config.stage, length, model.tokens_per_image, model.prompt_images)
    source = [
        f"  assumed, for the data or a tokenizer is not there: rows {PACKED:.0%} full of",
        *describe_families(config.stage, model.tokens_per_image),
    ]
    return Rows(work, samples, source)


def _start_with_tokenizer(start: ModelConfig) -> ModelConfig | None:
    for found in (start, replace(start, folder="")):
        folder = found.folder or found.language
        if folder and (Path(folder) / "tokenizer.json").is_file():
            return found
    return None


def describe_rows(rows: Rows, config: RunConfig, world_size: int) -> str:
    work, training = rows.work, config.training
    return "\n".join([
        f"rows: {training.rows_per_step} of {config.data.row_length} tokens a step, "
        f"{training.rows_per_step // world_size} on each GPU",
        *rows.source,
        f"  a row: {rows.samples:.1f} samples, {work.images:.1f} images, {work.text_targets:.0f} "
        f"text and {work.visual_targets:.0f} visual targets",
        f"  a step: {rows.samples * training.rows_per_step:,.0f} samples; "
        f"{_length(training, rows)}",
    ])  # fmt: skip


def _length(training: TrainingConfig, rows: Rows) -> str:
    in_step = rows.samples * training.rows_per_step
    if not training.epochs:
        return f"{training.steps:,} steps: {in_step * training.steps:,.0f}"
    if rows.in_epoch is None:
        return f"{training.epochs:g} epochs, whose steps are known where the data is"
    samples = Progress.of(training, rows.in_epoch).total
    return f"{training.epochs:g} epochs: {samples:,}, in about {samples / in_step:,.0f} steps"


def _fits(costs: Costs, gpu: Gpu) -> str:
    free = gpu.memory_gigabytes * GIGA / GIBI
    share = costs.total_bytes / GIBI / free
    verdict = "fits" if share < 0.9 else "is tight" if share < 1 else "does not fit"
    return f"  {share:.0%} of {free:.1f} GiB: {verdict}"


def describe_traffic(sent: Traffic) -> str:
    names = {"all_gather": "gathering weights", "reduce_scatter": "summing gradients",
             "all_reduce": "summing over copies"}  # fmt: skip
    lines = ["bytes sent by a GPU in a step (GB)"]
    lines += [
        f"  {names[entry.name]:<24}{getattr(sent, entry.name) / GIGA:>10.3f}"
        for entry in fields(sent)
    ]
    return "\n".join(lines)


def describe_prediction(
    prediction: Prediction,
    costs: Costs,
    rows: Rows,
    config: RunConfig,
    world_size: int,
    gpu: Gpu,
) -> str:
    """Seconds by part, samples a second, utilisation, and every assumption behind them."""
    precision = config.training.precision
    samples = rows.samples * config.training.rows_per_step / world_size / prediction.step
    tokens = costs.work.tokens / prediction.step
    peak = TERA * gpu.teraflops[precision] * prediction.step
    mfu, with_encoder = (
        (costs.model_flops + encoder) / peak for encoder in (0, costs.encoder.total)
    )
    lines = ["predicted step (seconds)"]
    lines += [f"  {label:<24}{getattr(prediction, name):>10.3f}" for name, label in LABELS.items()]
    bound = "compute" if prediction.compute >= prediction.communication else "communication"
    lines += [
        f"  {'step':<24}{prediction.step:>10.3f}   bound by {bound}",
        f"predicted {samples:.2f} samples/s/GPU, {tokens:,.0f} tokens/s/GPU; MFU {mfu:.1%}, "
        f"{with_encoder:.1%} with the encoder",
    ]
    if config.stage == "instruct":
        lines.append(
            f"  the paper's 8B run: at least {PAPER_SAMPLES} samples/s/GPU (16.07 million in less "
            f"than a day on 256 H100s,\n  an author said); its samples may be longer than these"
        )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in vars(ASSUMED).items())
    peaks = ", ".join(f"{name} {figure:g}" for name, figure in gpu.teraflops.items())
    return "\n".join([
        *lines,
        "assumptions:",
        RULES,
        f"  peak           {peaks} TFLOP/s dense, memory {gpu.memory_gigabytes_per_second:,} GB/s",
        f"  links          {gpu.nvlink_gigabytes_per_second} GB/s each way in a node of eight "
        f"(NVLink), {gpu.network_gigabytes_per_second} GB/s to other nodes",
        f"                 ({gpu.source})",
        f"  shares         {shares}: guesses, by which an 8B text",
        f"                 run on 8 H100s comes out near the {PUBLISHED:,} tokens/s/GPU that "
        f"torchtitan publishes",
        f"  activations    moved {ACTIVATION_PASSES} times what blocks keep without checkpointing: "
        f"a guess",
    ])  # fmt: skip
