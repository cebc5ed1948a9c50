"""The rules of a run that is about to start, and of one that is planned."""

import hashlib
import json

import torch
import torch.distributed as dist

from metamorph.config import RunConfig
from metamorph.config.reading import flat
from metamorph.data.opening import check_path
from metamorph.errors import UserError, shown
from metamorph.processes import gather, world_size
from metamorph.training.decoders.decoder_rules import check_decoder
from metamorph.training.rules.language import (
    check_factors,
    check_float8,
    check_parallel,
    check_visual_loss,
)
from metamorph.training.rules.length import check_length
from metamorph.training.rules.measuring import check_samples, check_validation
from metamorph.training.rules.uses import check_uses
from metamorph.training.rules.ways import (
    check_combinations,
    check_float8_device,
    check_libraries,
    check_offload,
    check_weights,
)

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
    if not own_source:
        check_path(config.data)  # a plan needs no data
    _check_anywhere(config, world_size(), dist.is_initialized(), own_source)
    check_libraries(config, device)
    if not config.trains_decoder:
        check_float8_device(config, device)


def check_plan(config: RunConfig, processes: int) -> None:
    """Raises `UserError` for a run that so many processes cannot do, whatever they run on."""
    _check_anywhere(config, processes, processes > 1)


def _check_anywhere(
    config: RunConfig, processes: int, by_torchrun: bool, own_source: bool = False
) -> None:
    """The rules that no device and no installed library changes."""
    check_validation(config, own_source)
    check_uses(config, own_source)
    check_length(config, own_source)
    check_samples(config, by_torchrun)
    check_combinations(config, by_torchrun)
    check_offload(config, by_torchrun)
    check_weights(config)
    if config.trains_decoder:
        check_decoder(config, processes)
        return
    check_parallel(config, processes)
    check_visual_loss(config)
    check_factors(config)
    check_float8(config, by_torchrun)
