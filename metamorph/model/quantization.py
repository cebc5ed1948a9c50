"""Weights in 8 bits for generation, by torchao: about half the memory of bfloat16.

Only weights are rounded, each row with a scale of its own; products are computed in the dtype of
their input. (fp8 of `precision` is another thing: there inputs are rounded too, weights stay.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.errors import UserError
from metamorph.libraries import first_line, torchao_quantization_absence
from metamorph.model.precision import BLOCKS
from metamorph.model.unified import MetaMorph

KINDS = ("int8", "float8")
HEAD = "language.lm_head"


class QuantizedLinear(nn.Linear):
    """nn.Linear over a weight of torchao: [..., in] -> [..., out], under autocast in its dtype.

    Autocast itself does not reach into torchao's tensors, nor to a bias beside them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight, bias)


def check_weights(kind: str, precision: str, device: torch.device) -> None:
    """Raises `UserError` if there is no such `kind` of weights, if it cannot go together with
    `precision`, or if torchao cannot be used: with the reason. The empty kind leaves weights alone.
    """
    if not kind:
        return
    if kind not in KINDS:
        raise UserError(f"weights: expected one of {', '.join(KINDS)}, got {kind!r}")
    if precision == "fp8":
        raise UserError(
            f"weights {kind}: precision fp8 rounds weights itself, as each product needs them; "
            f"take precision bf16"
        )
    reason = torchao_quantization_absence(device.type)
    if reason is not None:
        raise UserError(f"weights {kind}: torchao cannot be used here ({reason})")


@torch.no_grad()
def quantize_weights(model: MetaMorph, kind: str) -> None:
    """Rounds the weights of the language model's linear layers to 8 bits, in place.

    Those of all blocks, merged or not, and the text head where it is not the token table. Token
    table, norms, projector and vision head stay. The model generates; it can be neither trained nor
    saved. One layer at a time is converted, and what it was is freed.

    Args:
        model: on the device that it will run on.
        kind: int8 or float8 (e4m3).

    Raises `UserError` as `check_weights` does, and for layers that are in float8 already.
    """
    from torchao.quantization import quantize_

    device = model.projector.linear_1.weight.device
    check_weights(kind, "", device)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (name.startswith(BLOCKS) or name == HEAD)
    }
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            raise UserError(
                f"weights {kind}: {name} is converted already, to {type(layer).__name__}"
            )
    config = _config(kind)
    _try(kind, config, device, model.language.model.embed_tokens.weight.dtype)
    for name, layer in layers.items():
        quantize_(layer, config)
        if name != HEAD:  # whose weight is read, see `Llama.head`
            layer.__class__ = QuantizedLinear
    model.language.register_state_dict_pre_hook(_refuse_to_save)


def _config(kind: str):
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    config = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}[kind]
    # It would set what is the whole process's, the precision of fp32 products for one.
    return config(set_inductor_config=False)


def _try(kind: str, config, device: torch.device, dtype: torch.dtype) -> None:
    from torchao.quantization import quantize_

    layer = nn.Linear(32, 16, bias=False, device=device, dtype=dtype)
    try:
        quantize_(layer, config)
        layer(torch.ones(3, 32, device=device, dtype=dtype))
    except Exception as error:  # another library's: it may be anything
        raise UserError(
            f"weights {kind}: torchao cannot compute with them in {dtype} on {device} "
            f"({first_line(error)})"
        ) from error


def _refuse_to_save(*_) -> None:
    raise UserError("a model with weights in 8 bits cannot be saved; save the one that was opened")
