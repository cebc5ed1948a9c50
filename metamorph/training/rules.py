"""Every rule by which a configuration is refused: asked once, before anything is loaded.

Limits of single keys stand beside them in `config.keys`; here is what keys, processes, device and
installed libraries say together. Each raises `UserError` that names the key.
"""

import hashlib
import json

import torch
import torch.distributed as dist

from metamorph.combinations import LIBRARIES, REFUSED
from metamorph.config import RunConfig, TrainingConfig
from metamorph.config.reading import flat, is_set, iter_unused
from metamorph.costs.sharding import mesh_shape
from metamorph.data.opening import check_cache, check_path, endless_parts
from metamorph.errors import UserError, shown
from metamorph.libraries import require, torchao_optim_absence
from metamorph.model.precision import check_precision, check_recipe, choose_recipe
from metamorph.processes import gather, share_of, world_size
from metamorph.training.decoders.decoder_rules import check_decoder
from metamorph.training.optimizer import fused_adam_absence

# What each process may have its own way: it changes neither results nor what they tell each other.
OWN_KEYS = ("device", "data.workers", "data.cache", "data.cache_gigabytes")


def check_same_config(config: RunConfig) -> None:
    """All processes have the same configuration; they compare a hash of it. All call this.

    Raises `UserError`, in all of them, that names the keys that differ.
    """
    values = {key: value for key, value in flat(config).items() if key not in OWN_KEYS}
    text = json.dumps(values, sort_keys=True)
    if len(set(gather(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    everywhere = gather(values)
    differing = []
    for key, first in everywhere[0].items():
        for process, others in enumerate(everywhere):
            if others.get(key) != first:
                there = f"{shown(first)} in process 0 and {shown(others.get(key))} in {process}"
                differing.append(f"{key} is {there}")
                break
    raise UserError(
        f"the processes have different configurations, expected the same in all: "
        f"{'; '.join(differing)}"
    )


def check_rules(config: RunConfig, device: torch.device, own_source: bool = False) -> None:
    """Raises `UserError` for a run that cannot be on `device`, with these processes, here.

    `own_source`: the samples come from a program, not from where `config.data` says.
    """
    check_stage_uses(config)
    if not own_source:
        check_path(config.data)
        check_cache(config.data)
    check_length(config, own_source)
    check_validation(config, own_source)
    check_monitor(config)
    check_combinations(config, dist.is_initialized())
    check_recomputation(config, device)
    check_optimizer(config, device)
    check_lora(config, device)
    if config.trains_decoder:
        check_decoder(config, world_size())
        return
    check_parallel(config, world_size())
    check_visual_loss(config)
    check_factors(config)
    check_float8(config)
    check_float8_device(config, device)


def check_plan(config: RunConfig, processes: int) -> None:
    """Raises `UserError` for a run that so many processes cannot do, whatever they run on."""
    check_stage_uses(config)
    check_length(config)
    check_validation(config)
    check_combinations(config, processes > 1)
    if config.trains_decoder:
        check_decoder(config, processes)
    else:
        check_parallel(config, processes)
        check_visual_loss(config)
        check_factors(config)
        check_float8(config)


def check_stage_uses(config: RunConfig) -> None:
    """No key is set that the stage, or the kind of decoder, does not use."""
    for key, unused, users in iter_unused(config):
        raise UserError(f"{key}: {unused} does not use it (only {', '.join(users)}); leave it out")


def check_length(config: RunConfig, own_source: bool = False) -> None:
    """Steps or epochs say how long a run is; epochs need data that ends."""
    training = config.training
    check_warmup(training)
    if not training.epochs:
        return
    if training.steps is not None:
        raise UserError(
            f"training.epochs: got {training.epochs:g}, but training.steps says {training.steps}; "
            f"a run is as long as one of the two says, leave out the other"
        )
    endless = [] if own_source else endless_parts(config.data)
    if endless:
        raise UserError(
            f"training.epochs: {endless[0]} never ends; give it data.samples, how many are an "
            f"epoch, or give training.steps"
        )


def check_warmup(training: TrainingConfig) -> None:
    """What is said of the warm-up is said once, and fits the run."""
    if training.warmup_steps is None:
        return
    if training.warmup_ratio != TrainingConfig.warmup_ratio:
        raise UserError(
            f"training.warmup_steps: got {training.warmup_steps}, but training.warmup_ratio says "
            f"{training.warmup_ratio:g}; leave out one of the two"
        )
    if training.steps is None:
        raise UserError(
            "training.warmup_steps: how many steps training.epochs takes is not known before; "
            "give training.warmup_ratio"
        )
    if training.warmup_steps > training.steps:
        raise UserError(
            f"training.warmup_steps: got {training.warmup_steps}, expected at most "
            f"training.steps, {training.steps}"
        )


def check_validation(config: RunConfig, own_source: bool = False) -> None:
    """What is said of validation has samples to be done on."""
    if not config.data.validation:
        for key in ("validate_every", "validation_rows", "validation_samples"):
            if is_set(config, f"training.{key}"):
                raise UserError(
                    f"training.{key}: it needs data.validation, the samples to measure on"
                )
    elif own_source and isinstance(config.data.validation, float):
        raise UserError(
            "data.validation: a share can only be held out of the source that data.path names; "
            "give a file"
        )


def check_monitor(config: RunConfig) -> None:
    """Trackers are installed; a run that shows drawings can make them."""
    cpu, monitor = torch.device("cpu"), config.monitor
    for key in ("tensorboard", "wandb", "trackio"):
        if getattr(monitor, key):
            require(f"monitor.{key}", [key], cpu)
    if not monitor.samples_every or config.trains_decoder:  # which is what draws there
        return
    if not monitor.decoder:
        raise UserError("monitor.decoder: monitor.samples_every needs a decoder that draws")
    if dist.is_initialized():  # it draws with a whole plain copy
        if config.training.lora_rank:
            raise UserError("monitor.samples_every: with LoRA it needs a run without torchrun")
        if config.parallel.cpu_offload:
            raise UserError(
                "monitor.samples_every: with parallel.cpu_offload no GPU has room for a whole copy"
            )


def check_parallel(config: RunConfig, processes: int) -> None:
    """So many processes can share the rows and the weights."""
    training, parallel = config.training, config.parallel
    share_of("training.rows_per_step", training.rows_per_step, processes)
    mesh_shape(processes, parallel.shard)


def libraries_of(config: RunConfig) -> list[tuple[str, str]]:
    """Those of `LIBRARIES` that `config` asks for."""
    asked = []
    for key, value in LIBRARIES:
        section, name = key.split(".")
        is_used = key != "training.fp8_backend" or config.training.precision == "fp8"
        if is_used and getattr(getattr(config, section), name) == value:
            asked.append((key, value))
    return asked


def ways_of(config: RunConfig, by_torchrun: bool) -> list[str]:
    """Those of `WAYS` that the run goes, where torchrun starts it or does not."""
    training = config.training
    goes = {
        "torchrun": by_torchrun,
        "compile": training.compile,
        "cpu_offload": config.parallel.cpu_offload,
        "LoRA": training.lora_rank > 0,
    }
    ways = [way for way, is_on in goes.items() if is_on]
    recomputes = training.activation_checkpointing
    ways.append("no checkpointing" if recomputes == "none" else f"{recomputes} checkpointing")
    if training.precision == "fp8":
        ways.append(f"fp8 by {training.fp8_backend}")
    return ways


def check_combinations(config: RunConfig, by_torchrun: bool) -> None:
    """Raises `UserError`, naming the key, for a library that this way of running is not for."""
    for library in libraries_of(config):
        for way in ways_of(config, by_torchrun):
            if (library, way) in REFUSED:
                key, value = library
                raise UserError(f"{key}: {value} {REFUSED[library, way]}")


def check_recomputation(config: RunConfig, device: torch.device) -> None:
    """Compilation and offload have what they need."""
    training = config.training
    if config.parallel.cpu_offload and not dist.is_initialized():
        raise UserError("parallel.cpu_offload: it needs a run that torchrun started")
    if training.compile and device.type != "cuda":
        raise UserError(
            f"training.compile: it needs a GPU, got {device.type}, on which compiling takes longer "
            f"than it saves"
        )


def check_optimizer(config: RunConfig, device: torch.device) -> None:
    """The optimizer is installed, works on the device and with the dtype of the weights."""
    training = config.training
    if training.optimizer == "apex":
        require("training.optimizer: apex", ["apex"], device)
    for optimizer, library, absence in (
        ("adamw8bit", "torchao", torchao_optim_absence),
        ("transformer_engine", "transformer-engine", fused_adam_absence),
    ):
        reason = absence(device.type) if training.optimizer == optimizer else None
        if reason is not None:
            raise UserError(
                f"training.optimizer: {optimizer} cannot be used here ({library}: {reason}); "
                f"see docs/libraries.md"
            )
    if training.weights == "bf16" and training.optimizer != "adamw8bit":
        raise UserError(
            "training.weights: bf16 loses small updates without stochastic rounding, which only "
            f"training.optimizer adamw8bit does, got {training.optimizer}"
        )


def check_visual_loss(config: RunConfig) -> None:
    """The visual loss counts only where the vision head is trained; how it is learned, where it
    counts."""
    coefficient = config.training.visual_coefficient
    if config.stage != "instruct" and coefficient:
        raise UserError(
            f"training.visual_coefficient: got {coefficient:g}, but stage {config.stage} leaves "
            f"the vision head as it is, random at first, and a loss through it is noise; leave the "
            f"key out (0), and set it in stage instruct, which trains the head"
        )
    if is_set(config, "training.visual_loss") and not coefficient:
        raise UserError(
            f"training.visual_loss: nothing is learned by {config.training.visual_loss} where "
            f"training.visual_coefficient is 0; leave out one of the two"
        )
    if config.training.visual_input_dropout and not coefficient:
        raise UserError(
            "training.visual_input_dropout: pictures are hidden only for what predicts them, which "
            "learns nothing where training.visual_coefficient is 0; leave out one of the two"
        )


def check_factors(config: RunConfig) -> None:
    """Some part of the model has a learning rate."""
    keys = ["projector_rate_factor", "language_rate_factor"]
    if config.stage == "instruct":
        keys.append("vision_head_rate_factor")
    if not any(getattr(config.training, key) for key in keys):
        raise UserError(
            f"training.{keys[0]}: {' and '.join(keys)} are 0, so that stage {config.stage} would "
            f"train nothing; leave one out (1)"
        )


def check_lora(config: RunConfig, device: torch.device) -> None:
    """Adapters, if asked for, can be trained; without them nothing is said of them."""
    if not config.training.lora_rank:
        for key in ("lora_alpha", "lora_targets", "lora_dropout"):
            if is_set(config, f"training.{key}"):
                raise UserError(f"training.{key}: it needs training.lora_rank above 0")
        return
    require("training.lora_rank", ["peft"], device)


def check_float8(config: RunConfig) -> None:
    """The recipe is the backend's, and rows have a length that float8 products take."""
    training, length = config.training, config.data.row_length
    try:
        check_recipe(training.precision, training.fp8_backend, training.fp8_recipe)
    except UserError as error:
        raise UserError(f"training.{error}") from error
    if training.precision != "fp8":
        return
    # The gradient of a weight is a product over the tokens of a row.
    recipe, multiple = choose_recipe(training.fp8_backend, training.fp8_recipe)
    if length % multiple:
        name = f"precision fp8 by {recipe or training.fp8_backend}"
        raise UserError(f"data.row_length: {name} needs a multiple of {multiple}, got {length}")


def check_float8_device(config: RunConfig, device: torch.device) -> None:
    """The precision can be had on the device."""
    training = config.training
    try:
        check_precision(training.precision, training.fp8_backend, device, training.fp8_recipe)
    except UserError as error:
        raise UserError(f"training.{error}") from error
