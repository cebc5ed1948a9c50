"""Attention of the UNet's transformer blocks by another library.

diffusers' own switch, `set_attention_backend`, leaves this UNet as it is: its processor asks for
PyTorch's attention by name.
"""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor

from metamorph.decoder.libraries import distribution_of
from metamorph.errors import UserError
from metamorph.libraries import first_line

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k and v, [B, tokens, heads, D] all


def flash_attention(module: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By flash-attn 2 (`flash_attn`) or 3 (`flash_attn_interface`); float16 or bfloat16."""
    out = importlib.import_module(module).flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # early versions of 3 add the lse


def xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v)


FUNCTIONS: dict[str, Attend] = {  # by distribution
    "flash-attn-3": partial(flash_attention, "flash_attn_interface"),
    "flash-attn": partial(flash_attention, "flash_attn"),
    "xformers": xformers_attention,
}


class Processor:
    """Of diffusers' `Attention` in a transformer block: as `AttnProcessor2_0`, but for `attend`."""

    def __init__(self, attend: Attend):
        self.attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B, tokens, C]
        encoder_hidden_states: Tensor | None = None,  # [B, condition tokens, E]
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What `AttnProcessor2_0` gives for the same arguments. `ValueError` for a mask."""
        if attention_mask is not None:
            raise ValueError("attention_mask: expected none, all conditions are seen")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (tokens.unflatten(-1, (attn.heads, -1)) for tokens in projected)
        linear, dropout = attn.to_out
        return dropout(linear(self.attend(q, k, v).flatten(-2))) / attn.rescale_output_factor


def prepare_attention(unet: UNet2DConditionModel, name: str) -> Callable[[], None]:
    """Finds out whether a library can attend in all transformer blocks of a UNet, on its device and
    in its dtype. Nothing is changed until what is returned is called: it puts it in place.

    Raises `ValueError` for a name that is none, and `UserError` for a library that cannot be used
    there, and for one that cannot compute this UNet, which a few tokens of each width show.
    """
    attend = FUNCTIONS[distribution_of("attention", name, unet.device)]
    blocks = [block for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    found = [attn for block in blocks for attn in (block.attn1, block.attn2) if attn is not None]
    for heads, width in sorted({(attn.heads, attn.inner_dim // attn.heads) for attn in found}):
        tokens = torch.zeros(1, 8, heads, width, device=unet.device, dtype=unet.dtype)
        try:
            attend(tokens, tokens, tokens)
        except Exception as error:  # another library's: it may be anything
            raise UserError(
                f"the decoder's attention by {name} cannot be computed with heads of {width} in "
                f"{unet.dtype} ({first_line(error)}); see docs/libraries.md"
            ) from error

    def put_in_place() -> None:
        for attn in found:
            attn.set_processor(Processor(attend))

    return put_in_place
