"""What fp32, bf16 and fp8 mean for a model, in training and inference alike.

bf16 is autocast. fp8 is bf16 with the matrix products of the language model's linear layers in
float8: the input, the weight and, in the backward, the gradient are rounded to 8 bits as each
product needs them. Parameters stay as they are, in name, shape and dtype: what is saved of a model
in fp8 is plain and loads without any float8 package.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.config.keys import Fp8Backend, Precision
from metamorph.errors import UserError
from metamorph.libraries import PROBES
from metamorph_kernels import MLPGelu, linear_fp8, mlp_gelu_fp8

MULTIPLE = 16  # of the widths of a matrix whose products tensor cores can do in float8
LIBRARIES = {"torchao": "torchao", "transformer_engine": "transformer-engine"}  # by backend
BLOCKS = "language.model.layers."


@dataclass(frozen=True)
class Float8Layers:
    """What `convert_to_float8` did: layers by name, and why the others stayed as they were."""

    backend: str
    converted: tuple[str, ...]
    left: dict[str, str]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward in `precision`: bfloat16 autocast, for fp32 switched off.

    In fp8 the layers that `convert_to_float8` converted differ from that by themselves.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32")


def check_precision(precision: str, fp8_backend: str, device: torch.device) -> None:
    """Raises `UserError` if there is no such precision or backend, or, for fp8, if the backend
    cannot compute on `device`: with the reason.

    `native` can everywhere: without float8 hardware it emulates float8 in float32.
    """
    for name, value, choices in (
        ("precision", precision, get_args(Precision)),
        ("fp8_backend", fp8_backend, get_args(Fp8Backend)),
    ):
        if value not in choices:
            raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    if precision != "fp8" or fp8_backend == "native":
        return
    reason = PROBES[LIBRARIES[fp8_backend]](device.type)
    if reason is not None:
        raise UserError(
            f"precision fp8: {fp8_backend} cannot be used here ({reason}); the backend native runs "
            f"everywhere, emulated where no GPU has float8"
        )


def convert_to_float8(
    model: nn.Module, backend: str, device: torch.device | None = None
) -> Float8Layers:
    """Converts the linear layers of all blocks of a MetaMorph's language model, in place.

    That is q, k, v, o, gate, up and down; `native` converts the projector too. Widths that are
    no multiples of 16 have no float8 product and stay. So do both heads, whose rounding would go
    straight into the losses, and embeddings, norms and encoder, a small part of a step.

    Args:
        model: in any dtype; call it under `autocast("fp8", ...)`.
        backend: torchao, transformer_engine or native.
        device: the one it will run on, where it is not there yet.

    Raises `UserError` if the backend cannot run there.
    """
    device = device or next(model.parameters()).device
    check_precision("fp8", backend, device)
    chosen, left = _choose(model, backend)
    convert = {
        "torchao": partial(_convert_torchao, emulate=device.type != "cuda"),
        "transformer_engine": _convert_transformer_engine,
        "native": _convert_native,
    }
    convert[backend](model, chosen)
    return Float8Layers(backend, tuple(chosen), left)


def _choose(model: nn.Module, backend: str) -> tuple[list[str], dict[str, str]]:
    chosen, left = [], {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS):
            widths = [module.in_features, module.out_features]
        elif isinstance(module, MLPGelu) and name == "projector" and backend == "native":
            first, second = module.linear_1, module.linear_2
            widths = [first.in_features, first.out_features, second.out_features]
        else:
            continue
        if any(width % MULTIPLE for width in widths):
            shown = " x ".join(map(str, widths))
            left[name] = f"{shown}, float8 needs multiples of {MULTIPLE}"
        else:
            chosen.append(name)
    if backend != "native":
        left["projector"] = "converted by native only"
    if hasattr(model.language, "lm_head"):
        left["language.lm_head"] = "a head"
    left["vision_head"] = "a head"
    return chosen, left


def _convert_torchao(model: nn.Module, names: Collection[str], emulate: bool) -> None:
    """A scale for each row, rounded to a power of two, and e4m3 throughout: torchao's "rowwise"."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name("rowwise")
    config = replace(config, emulate=emulate)  # in tests alone, see check_precision
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, name: name in names
    )


def _convert_transformer_engine(model: nn.Module, names: Collection[str]) -> None:
    """A scale for each tensor from its present values, e4m3 forward and e5m2 gradients."""
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import Float8CurrentScaling

    recipe = Float8CurrentScaling()

    class Linear(te.Linear):
        # Scales come from present values: there is no state that a checkpoint would have to keep.
        get_extra_state = nn.Module.get_extra_state
        set_extra_state = nn.Module.set_extra_state

        def forward(self, x: Tensor) -> Tensor:
            """x [T, in] -> [T, out]. Rows come in multiples of 16; a prompt may have any number."""
            padding = -len(x) % MULTIPLE
            if padding:
                x = F.pad(x, (0, 0, 0, padding))
            # Around each layer, not around the model: what recomputes a block in the backward then
            # recomputes it in float8.
            with te.autocast(enabled=True, recipe=recipe):
                out = super().forward(x)
            return out[: len(x) - padding]

    for name in names:
        old = model.get_submodule(name)
        new = Linear(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            params_dtype=old.weight.dtype,
            device="meta",
        )
        new.weight = old.weight
        if old.bias is not None:
            new.bias = old.bias
        model.set_submodule(name, new.train(old.training))


class Float8Linear(nn.Linear):
    """nn.Linear through `metamorph_kernels.linear_fp8`: [..., in] -> [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        return linear_fp8(input, self.weight, self.bias)


class Float8MLPGelu(MLPGelu):
    """MLPGelu through `metamorph_kernels.mlp_gelu_fp8`: [..., in] -> [..., out]."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear_1, self.linear_2
        return mlp_gelu_fp8(x, first.weight, first.bias, second.weight, second.bias)


def _convert_native(model: nn.Module, names: Collection[str]) -> None:
    """A scale for each row, e4m3 forward and e5m2 gradients."""
    for name in names:
        module = model.get_submodule(name)
        # The layers have what their parents have: only what forward does is another.
        module.__class__ = Float8MLPGelu if isinstance(module, MLPGelu) else Float8Linear
