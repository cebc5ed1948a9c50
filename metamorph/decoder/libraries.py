"""Which libraries can compute parts of the diffusion decoder's UNet, and whether they can here."""

from dataclasses import dataclass
from typing import get_args

import torch

from metamorph.config.keys import DecoderAttention, DecoderGroupNorm, DecoderPrecision
from metamorph.errors import UserError
from metamorph.libraries import require

DISTRIBUTIONS = {  # part, and who computes it: the distributions that can, best first
    ("attention", "flash_attn"): ("flash-attn-3", "flash-attn"),
    ("attention", "xformers"): ("xformers",),
    ("group norm", "apex"): ("apex-group-norm",),
}


def distribution_of(part: str, name: str, device: torch.device) -> str:
    """Who computes a part of the decoder on a device. Raises `ValueError` for a name that is none,
    and `UserError` with the reason for a library that cannot be used there."""
    if (part, name) not in DISTRIBUTIONS:
        names = [known for of, known in DISTRIBUTIONS if of == part]
        raise ValueError(f"{part}: expected one of {', '.join(names)}, got {name!r}")
    return require(f"the decoder's {part} by {name}", DISTRIBUTIONS[part, name], device)


@dataclass(frozen=True)
class DecoderOptions:
    """What a decoder computes in, and which parts of it a library computes; None is PyTorch.

    Pictures are the same up to rounding.
    """

    precision: DecoderPrecision = "fp32"
    attention: DecoderAttention | None = None
    group_norm: DecoderGroupNorm | None = None

    def __post_init__(self):
        if self.precision not in get_args(DecoderPrecision):
            known = " or ".join(get_args(DecoderPrecision))
            raise ValueError(f"precision: expected {known}, got {self.precision!r}")

    def check(self, kind: str, device: torch.device) -> None:
        """Raises `UserError` for parts that a decoder of this kind has not, or that cannot be
        computed so on a device."""
        for part, name in (("attention", self.attention), ("group norm", self.group_norm)):
            if name is None:
                continue
            if kind == "rae":
                raise UserError(
                    f"the decoder draws in one pass: its {part} is PyTorch's own, not by {name}"
                )
            distribution_of(part, name, device)


DEFAULT_DECODER_OPTIONS = DecoderOptions()
