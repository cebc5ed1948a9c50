"""Group norms of UNet and VAE by NVIDIA apex, whose kernels read pictures channels-last."""

import importlib

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from metamorph.decoder.libraries import distribution_of
from metamorph.errors import UserError
from metamorph.libraries import first_line


def set_group_norm(part: nn.Module, name: str) -> int:
    """Puts apex's `GroupNorm` in the place of PyTorch's wherever its kernels take the number of
    groups and channels, with the same parameters by the same names, and lays the weights out
    channels-last. Returns how many there are.

    Raises `ValueError` for a name that is none, and `UserError` where apex cannot be used.
    """
    distribution_of("group norm", name, next(part.parameters()).device)
    fused = importlib.import_module("apex.contrib.group_norm").GroupNorm
    part.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    replaced = 0
    for holder in list(part.modules()):
        if isinstance(holder, Attention):  # its norm is of tokens, which have no such layout
            continue
        for child, norm in list(holder.named_children()):
            # For others apex would compute in PyTorch, unasked.
            if (
                isinstance(norm, nn.GroupNorm)
                and norm.num_groups in fused.SUPPORTED_GROUPS
                and norm.num_channels in fused.SUPPORTED_CHANNELS
            ):
                setattr(holder, child, _fused(fused, norm))
                replaced += 1
    return replaced


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
