"""Linear layers by Transformer Engine, in float8 or, by one of its recipes, in four bits.

A recipe says what shares a scale. All of these take scales from present values: there is no state
that a checkpoint would have to keep. (Its `DelayedScaling` takes those of earlier steps, which
activations that are computed again in the backward would count twice.)
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamorph.libraries import transformer_engine_absence
from metamorph.model.language import project, share_inputs

SUPPORT = {  # recipe: what of Transformer Engine knows whether this GPU has it
    "Float8CurrentScaling": "is_fp8_available",
    "Float8BlockScaling": "is_fp8_block_scaling_available",
    "MXFP8BlockScaling": "is_mxfp8_available",
    "NVFP4BlockScaling": "is_nvfp4_available",
}


def recipe_absence(recipe: str, device_type: str) -> str | None:
    """Why Transformer Engine cannot compute by a recipe on this device type, or None."""
    reason = transformer_engine_absence(device_type)
    if reason is not None:
        return reason
    import transformer_engine.pytorch as te

    is_supported, why = getattr(te, SUPPORT[recipe])(return_reason=True)
    return None if is_supported else f"{recipe}: {why}"


def convert_linear(model: nn.Module, names: Collection[str], recipe: str, multiple: int) -> None:
    """Puts Transformer Engine's layer in the place of each of these, with its very parameters.
    Layers that read the same input have it rounded once.

    `multiple` is what the recipe wants the number of rows to be one of.
    """
    import transformer_engine.common.recipe as recipes
    import transformer_engine.pytorch as te
    from transformer_engine.pytorch.quantization import RecipeState

    scaling = getattr(recipes, recipe)()

    def whole(x: Tensor) -> Tensor:
        """x [T, in]; a prompt may have any number of rows: they are filled up."""
        padding = -len(x) % multiple
        return F.pad(x, (0, 0, 0, padding)) if padding else x

    def narrowed(x: Tensor) -> Tensor:
        """x in the dtype of autocast: norms return float32, of which NVFP4 takes nothing."""
        kind = x.device.type
        return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x

    @cache
    def input_quantizer() -> Any:
        of_input, _of_weight, _of_output = RecipeState.create(
            scaling, mode="forward", num_quantizers=3
        ).make_quantizers()
        return of_input

    class Linear(te.Linear):
        # Without the state that earlier scales would be.
        get_extra_state = nn.Module.get_extra_state
        set_extra_state = nn.Module.set_extra_state
        is_first_microbatch: bool | None = None  # see `mark_microbatch`

        def forward(self, x: Tensor) -> Tensor:
            """x [T, in], rounded or not -> [T, out]."""
            # Around each layer, not around the model: what recomputes a block in the backward then
            # recomputes it in float8.
            with te.autocast(enabled=True, recipe=scaling):
                out = super().forward(whole(x), is_first_microbatch=self.is_first_microbatch)
            return out[: len(x)]

    def project_rounded(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
        """`project` of x [T, in], which is rounded here if all layers take it so."""
        if not all(isinstance(layer, Linear) for layer in layers):
            return project(x, *layers)
        quantizer = input_quantizer()
        for_weights = any(layer.weight.requires_grad for layer in layers)
        quantizer.set_usage(rowwise=True, columnwise=torch.is_grad_enabled() and for_weights)
        rounded = quantizer(whole(narrowed(x)))
        return [out[: len(x)] for out in project(rounded, *layers)]

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
    share_inputs(model, project_rounded)


def mark_microbatch(model: nn.Module, is_first: bool | None) -> None:
    """Says whether what the layers compute next is the first of several forwards with the same
    weights: they keep what they round them to, and do not round again in the others. None, as at
    the beginning, where nothing is known of the weights: they round them each time.

    Sharded weights (FSDP2) Transformer Engine rounds each time all the same.
    """
    for layer in _converted(model):
        layer.is_first_microbatch = is_first


@torch.no_grad()
def keep_rounded_weights(model: nn.Module, device: torch.device) -> None:
    """Lets the layers of a model that only generates round their weights once, now: a row of zeros
    goes through each. They keep the result beside the weights, which must not move after this."""
    for layer in _converted(model):
        layer.is_first_microbatch = True
        with torch.autocast(device.type, torch.bfloat16):
            layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16, device=device))
        layer.is_first_microbatch = False


def _converted(model: nn.Module) -> list[Any]:
    """The layers that `convert_linear` made."""
    return [module for module in model.modules() if hasattr(module, "is_first_microbatch")]
