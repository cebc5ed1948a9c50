"""What libraries, devices and ways of running have to do with each other."""

import torch

from metamorph.combinations import LIBRARIES, REFUSED
from metamorph.config import RunConfig
from metamorph.errors import UserError
from metamorph.libraries import require, torchao_optim_absence
from metamorph.model.precision import check_precision
from metamorph.training.optimizer import fused_adam_absence


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


def check_offload(config: RunConfig, by_torchrun: bool) -> None:
    """Weights are kept in host memory by what shards them."""
    if config.parallel.cpu_offload and not by_torchrun:
        raise UserError("parallel.cpu_offload: it needs a run that torchrun started")


def check_weights(config: RunConfig) -> None:
    """The optimizer moves weights of the dtype that is asked for."""
    training = config.training
    if training.weights == "bf16" and training.optimizer != "adamw8bit":
        raise UserError(
            "training.weights: bf16 loses small updates without stochastic rounding, which only "
            f"training.optimizer adamw8bit does, got {training.optimizer}"
        )


def check_libraries(config: RunConfig, device: torch.device) -> None:
    """What the run asks for is installed, and can be had on the device."""
    training = config.training
    if training.compile and device.type != "cuda":
        raise UserError(
            f"training.compile: it needs a GPU, got {device.type}, on which compiling takes longer "
            f"than it saves"
        )
    if training.lora_rank:
        require("training.lora_rank", ["peft"], device)
    for key in ("tensorboard", "wandb", "trackio"):
        if getattr(config.monitor, key):
            require(f"monitor.{key}", [key], torch.device("cpu"))
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


def check_float8_device(config: RunConfig, device: torch.device) -> None:
    """The precision can be had on the device."""
    training = config.training
    try:
        check_precision(training.precision, training.fp8_backend, device, training.fp8_recipe)
    except UserError as error:
        raise UserError(f"training.{error}") from error
