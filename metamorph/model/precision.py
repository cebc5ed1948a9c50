"""What fp32, bf16 and fp8 mean for a model, in training and inference alike.

bf16 is autocast. fp8 is bf16 with the matrix products of the language model's linear layers in
float8: the input, the weight and, in the backward, the gradient are rounded to 8 bits as each
product needs them. Parameters stay as they are, in name, shape and dtype: what is saved of a model
in fp8 is plain and loads without any float8 package.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from metamorph.config.keys import Fp8Backend, Precision
from metamorph.errors import UserError
from metamorph.libraries import torchao_absence
from metamorph.model.language import project, share_inputs
from metamorph.model.transformer_engine_linear import (
    convert_linear,
    keep_rounded_weights,
    recipe_absence,
)
from metamorph_kernels import MLPGelu, linear_fp8, linears_fp8, mlp_gelu_fp8

MULTIPLE = 16  # of the widths of a matrix whose products tensor cores can do in float8
# Of each backend its recipes, by the library's own names and the default first, and what widths
# and rows have to be multiples of: a block that shares a scale, or more.
RECIPES = {
    "torchao": {"rowwise": MULTIPLE, "rowwise_with_gw_hp": MULTIPLE, "tensorwise": MULTIPLE},
    "transformer_engine": {
        "Float8CurrentScaling": MULTIPLE,
        "Float8BlockScaling": 128,
        "MXFP8BlockScaling": 32,
        "NVFP4BlockScaling": 128,
    },
    "native": {},
}
DEFAULT_BACKEND = "torchao"
BLOCKS = "language.model.layers."


@dataclass(frozen=True)
class Float8Layers:
    """What `convert_to_float8` did: layers by name, and why the others stayed as they were."""

    backend: str
    converted: tuple[str, ...]
    left: dict[str, str]
    recipe: str = ""


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward in `precision`: bfloat16 autocast, for fp32 switched off.

    In fp8 the layers that `convert_to_float8` converted differ from that by themselves.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32")


def choose_recipe(backend: str, recipe: str | None) -> tuple[str, int]:
    """A recipe of a backend, its default where none was asked for, and what it has widths and rows
    be multiples of. `native` has one way, whose name is empty.

    Raises `UserError` for a recipe that is not the backend's.
    """
    known = RECIPES[backend]
    if recipe is None:
        return next(iter(known.items()), ("", MULTIPLE))
    if recipe not in known:
        names = f"one of {', '.join(known)}" if known else "none"
        raise UserError(f"fp8_recipe: expected {names} for {backend}, got {recipe!r}")
    return recipe, known[recipe]


def check_recipe(precision: str, fp8_backend: str, fp8_recipe: str | None = None) -> None:
    """Raises `UserError` if there is no such precision or backend, if backend or recipe has no fp8
    to be for, or if the recipe is not the backend's: on any device."""
    for name, value, choices in (
        ("precision", precision, get_args(Precision)),
        ("fp8_backend", fp8_backend, get_args(Fp8Backend)),
    ):
        if value not in choices:
            raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    if precision != "fp8":
        if fp8_recipe is not None:
            raise UserError(f"fp8_recipe: {fp8_recipe} is for precision fp8, got {precision}")
        if fp8_backend != DEFAULT_BACKEND:
            raise UserError(f"fp8_backend: {fp8_backend} is for precision fp8, got {precision}")
        return
    choose_recipe(fp8_backend, fp8_recipe)


def check_precision(
    precision: str, fp8_backend: str, device: torch.device, fp8_recipe: str | None = None
) -> None:
    """Raises `UserError` as `check_recipe` does, or, for fp8, if the backend cannot compute so on
    `device`: with the reason.

    `native` can everywhere: without float8 hardware it emulates float8 in float32.
    """
    check_recipe(precision, fp8_backend, fp8_recipe)
    if precision != "fp8" or fp8_backend == "native":
        return
    recipe, _ = choose_recipe(fp8_backend, fp8_recipe)
    if fp8_backend == "torchao":
        reason = torchao_absence(device.type)
    else:
        reason = recipe_absence(recipe, device.type)
    if reason is not None:
        raise UserError(
            f"precision fp8: {fp8_backend} cannot be used here ({reason}); the backend native runs "
            f"everywhere, emulated where no GPU has float8"
        )


def convert_to_float8(
    model: nn.Module,
    backend: str,
    device: torch.device | None = None,
    fp8_recipe: str | None = None,
    fp8_all_gather: bool = False,
) -> Float8Layers:
    """Converts the linear layers of all blocks of a MetaMorph's language model, in place.

    That is q, k, v, o, gate, up and down; `native` converts the projector too. Widths that are
    no multiples of 16, or of what the recipe asks for, have no such product and stay. So do both
    heads, whose rounding would go straight into the losses, and embeddings, norms and encoder, a
    small part of a step.

    Args:
        model: in any dtype; call it under `autocast("fp8", ...)`.
        backend: torchao, transformer_engine or native.
        device: the one it will run on, where it is not there yet.
        fp8_recipe: one of the backend's, None for its first: `RECIPES`.
        fp8_all_gather: FSDP2 will gather these weights in 8 bits, where torchao's recipe is
            tensorwise: `metamorph.model.float8_gather`.

    Raises `UserError` if the backend cannot run there.
    """
    device = device or next(model.parameters()).device
    check_precision("fp8", backend, device, fp8_recipe)
    recipe, multiple = choose_recipe(backend, fp8_recipe)
    chosen, left = choose_layers(model, backend, multiple)
    emulate = device.type != "cuda"  # in tests alone, see check_precision
    convert = {
        "torchao": partial(
            _convert_torchao, recipe=recipe, emulate=emulate, all_gather=fp8_all_gather
        ),
        "transformer_engine": partial(convert_linear, recipe=recipe, multiple=multiple),
        "native": _convert_native,
    }
    convert[backend](model, chosen)
    return Float8Layers(backend, tuple(chosen), left, recipe)


def convert_to_generate(model: nn.Module, backend: str) -> None:
    """`convert_to_float8` of a model on its device that will not be trained: layers of Transformer
    Engine round their weights now, and not again. Raises `UserError` as it does."""
    convert_to_float8(model, backend)
    keep_rounded_weights(model, next(model.parameters()).device)


def choose_layers(
    model: nn.Module, backend: str, multiple: int
) -> tuple[list[str], dict[str, str]]:
    """The layers that a backend converts whose widths are multiples of `multiple`, by name; and
    those that stay, with the reason."""
    chosen, left = [], {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS):
            widths = [module.in_features, module.out_features]
        elif isinstance(module, MLPGelu) and name == "projector" and backend == "native":
            first, second = module.linear_1, module.linear_2
            widths = [first.in_features, first.out_features, second.out_features]
        else:
            continue
        if any(width % multiple for width in widths):
            shown = " x ".join(map(str, widths))
            left[name] = f"{shown}, float8 needs multiples of {multiple}"
        else:
            chosen.append(name)
    if backend != "native":
        left["projector"] = "converted by native only"
    if hasattr(model.language, "lm_head"):
        left["language.lm_head"] = "a head"
    left["vision_head"] = "a head"
    return chosen, left


def _convert_torchao(
    model: nn.Module, names: Collection[str], recipe: str, emulate: bool, all_gather: bool
) -> None:
    """A scale for each row, rounded to a power of two, and e4m3 throughout: torchao's "rowwise".
    By "rowwise_with_gw_hp" the product for the gradient of a weight stays in bfloat16; by
    "tensorwise" a tensor has one scale, and gradients are in e5m2."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name(recipe)
    config = replace(config, emulate=emulate, enable_fsdp_float8_all_gather=all_gather)
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, name: name in names
    )


class Float8Linear(nn.Linear):
    """nn.Linear through `metamorph_kernels.linear_fp8`: [..., in] -> [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        return linear_fp8(input, self.weight, self.bias)


class Float8MLPGelu(MLPGelu):
    """MLPGelu through `metamorph_kernels.mlp_gelu_fp8`: [..., in] -> [..., out]."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear_1, self.linear_2
        return mlp_gelu_fp8(x, first.weight, first.bias, second.weight, second.bias)


def project_fp8(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """`project` with x [T, H] rounded once, if all layers are in float8."""
    in_float8 = [layer for layer in layers if isinstance(layer, Float8Linear)]
    if len(in_float8) < len(layers):
        return project(x, *layers)
    weights = [layer.weight for layer in in_float8]
    return linears_fp8(x, weights, [layer.bias for layer in in_float8])


def _convert_native(model: nn.Module, names: Collection[str]) -> None:
    """A scale for each row, e4m3 forward and e5m2 gradients."""
    for name in names:
        module = model.get_submodule(name)
        # The layers have what their parents have: only what forward does is another.
        module.__class__ = Float8MLPGelu if isinstance(module, MLPGelu) else Float8Linear
    share_inputs(model, project_fp8)
