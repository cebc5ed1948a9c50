"""Group norms of UNet and VAE by NVIDIA apex, whose kernels read pictures channels-last."""

import importlib
from collections.abc import Callable, Sequence

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from metamorph.decoder.libraries import distribution_of
from metamorph.errors import UserError
from metamorph.libraries import first_line


def prepare_group_norms(parts: Sequence[nn.Module], name: str) -> Callable[[], None]:
    """Makes apex's `GroupNorm`, with the same parameters by the same names, of every norm of the
    parts for whose number of groups and channels it has kernels, and tries it. Nothing is changed
    until what is returned is called: it puts them in place and lays weights out channels-last.

    Raises `ValueError` for a name that is none, and `UserError` where apex cannot be used, or for
    none of the norms.
    """
    distribution_of("group norm", name, next(parts[0].parameters()).device)
    fused = importlib.import_module("apex.contrib.group_norm").GroupNorm
    replaced = [
        (holder, child, _fused(fused, norm))
        for part in parts
        for holder in part.modules()
        if not isinstance(holder, Attention)  # its norm is of tokens, which have no such layout
        for child, norm in holder.named_children()
        if isinstance(norm, nn.GroupNorm)
        and norm.num_groups in fused.SUPPORTED_GROUPS  # apex leaves others to PyTorch, unasked
        and norm.num_channels in fused.SUPPORTED_CHANNELS
    ]
    if not replaced:
        raise UserError(
            f"the decoder's group norm by {name} cannot be used here: its kernels know none of "
            f"this decoder's numbers of groups and channels; see docs/libraries.md"
        )

    def put_in_place() -> None:
        for part in parts:
            part.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
        for holder, child, norm in replaced:
            setattr(holder, child, norm)

    return put_in_place


def _fused(kind: type[nn.Module], norm: nn.GroupNorm) -> nn.Module:
    weight = norm.weight
    made = kind(
        norm.num_groups, norm.num_channels, norm.eps, device=weight.device, dtype=weight.dtype
    )
    made.weight, made.bias = weight, norm.bias
    made.register_forward_pre_hook(_channels_last)
    try:
        made(torch.zeros(1, norm.num_channels, 4, 4, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # another library's: it may be anything
        raise UserError(
            f"the decoder's group norm by apex cannot be computed with {norm.num_channels} "
            f"channels in {weight.dtype} ({first_line(error)}); see docs/libraries.md"
        ) from error
    return made


def _channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Nothing to do, but behind a transformer block."""
    return (inputs[0].contiguous(memory_format=torch.channels_last),)
