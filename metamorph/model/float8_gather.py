"""Sharded weights that FSDP2 gathers in 8 bits: torchao's, whose recipe is tensorwise.

Such a weight is a tensor around the float32 one. FSDP2 asks it what to send and what to make of it:
each process rounds its own part, by a scale that all share, and the products take what was gathered
as it is. What the optimizer moves, and what is saved, is the tensor within.
"""

from collections.abc import Collection

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from metamorph.config import TrainingConfig
from metamorph.errors import UserError
from metamorph.model.precision import choose_recipe


def check_all_gather(training: TrainingConfig, by_torchrun: bool) -> None:
    """Raises `UserError`, naming the key, for a run that cannot gather so: only torchao's recipe
    tensorwise has such weights, only PyTorch's AdamW moves them, one process gathers nothing."""
    if not training.fp8_all_gather:
        return
    recipe, _ = choose_recipe(training.fp8_backend, training.fp8_recipe)
    for key, found, needed in (
        ("precision", training.precision, "fp8"),
        ("fp8_backend", training.fp8_backend, "torchao"),
        ("fp8_recipe", recipe, "tensorwise"),
        ("optimizer", training.optimizer, "torch"),
    ):
        if found != needed:
            raise UserError(
                f"training.fp8_all_gather: it needs training.{key} {needed}, got {found}"
            )
    if not by_torchrun:
        raise UserError("training.fp8_all_gather: it needs a run that torchrun started")


def check_shares(model: nn.Module, names: Collection[str], shards: int) -> None:
    """Raises `UserError` unless each of the layers `names` has as many rows for every one of
    `shards` processes: FSDP2 fills up what it sends, but not what a weight gives it to send."""
    for name in names:
        rows = len(model.get_parameter(f"{name}.weight"))
        if rows % shards:
            raise UserError(
                f"training.fp8_all_gather: {name} has {rows} rows, which {shards} processes cannot "
                f"share evenly; take another parallel.shard, or leave the key out"
            )


def scale_weights(model: nn.Module) -> None:
    """Finds the scales of all weights that are gathered in 8 bits, as they are now, with one
    message for all: FSDP2 would else ask for them one by one. All processes call this after a step.
    """
    from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

    precompute_float8_dynamic_scale_for_fsdp(model)


def plain(parameter: Tensor) -> Tensor:
    """A detached parameter without torchao's tensor around it, in the same memory."""
    tensor = parameter.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    within = getattr(tensor.to_local(), "_tensor", None)  # torchao's name for what it is around
    if within is None:
        return tensor
    return DTensor.from_local(
        within.detach(),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
