"""Stand-ins of `fake_libraries` for Transformer Engine: what its layers take, without rounding."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.fake_adam import FusedAdam
from tests.fake_attention import CALLS


class Float8CurrentScaling:
    multiple = 16  # of widths and rows that can be rounded so


class Float8BlockScaling:
    multiple = 128


class MXFP8BlockScaling:
    multiple = 32


class NVFP4BlockScaling:
    multiple = 16


Recipe = Float8CurrentScaling | Float8BlockScaling | MXFP8BlockScaling | NVFP4BlockScaling
RECIPES: list[Recipe] = []  # of the regions that are open now
USAGES: list[tuple[bool, bool]] = []  # of an input that was rounded for several layers
MICROBATCHES: list[bool | None] = []  # `is_first_microbatch` of each forward


def is_fp8_available(return_reason=False):
    return (True, "") if return_reason else True


def is_mxfp8_available(return_reason=False):
    return is_fp8_available(return_reason)


def is_fp8_block_scaling_available(return_reason=False):
    return is_fp8_available(return_reason)


def is_nvfp4_available(return_reason=False):
    return is_fp8_available(return_reason)


@contextmanager
def autocast(enabled=True, calibrating=False, recipe=None, amax_reduction_group=None, _graph=False):
    assert enabled and not calibrating
    RECIPES.append(recipe)
    try:
        yield
    finally:
        RECIPES.pop()


class Rounded(Tensor):
    """What a quantizer made: the very numbers."""


class Quantizer:
    def set_usage(self, *, rowwise=None, columnwise=None):
        USAGES.append((rowwise, columnwise))

    def __call__(self, tensor):
        CALLS.append("Quantizer")
        assert len(tensor) % self.multiple == 0 and tensor.dtype == torch.bfloat16
        return tensor.as_subclass(Rounded)


class RecipeState:
    @staticmethod
    def create(recipe, *, mode, num_quantizers=1, device=None, roles=None):
        assert mode == "forward" and num_quantizers == 3  # of an input, a weight and an output
        state = RecipeState()
        state.recipe = recipe
        return state

    def make_quantizers(self):
        of_input = Quantizer()
        of_input.multiple = self.recipe.multiple
        return [of_input, None, None]


class Linear(torch.nn.Module):
    """Rows in whole blocks, inside `autocast` only; its class brings an extra state.

    What the first microbatch made of the weight is what the others compute with, whatever became of
    the weight: gradients are the weight's all the same.
    """

    def __init__(
        self, in_features, out_features, sequence_parallel=False, fuse_wgrad_accumulation=False,
        tp_group=None, tp_size=1, get_rng_state_tracker=None, rng_tracker_name=None,
        init_method=None, bias=True, return_bias=False, params_dtype=None, parallel_mode=None,
        parameters_split=None, device="cuda", ub_overlap_ag=False, ub_overlap_rs=False,
        ub_overlap_rs_dgrad=False, ub_bulk_dgrad=False, ub_bulk_wgrad=False, ub_name=None,
        delay_wgrad_compute=False, symmetric_ar_type=None, save_original_input=False, name=None,
    ):  # fmt: skip
        super().__init__()
        options = {"dtype": params_dtype, "device": device}
        self.in_features, self.out_features = in_features, out_features
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, **options))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(out_features, **options))
        else:
            self.bias = torch.empty(0, **options)
        self.rounded: Tensor | None = None

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        assert state.numel() == 0

    def forward(self, inp, is_first_microbatch=None, fp8_output=False, fp8_grad=False):
        CALLS.append("Linear of what is rounded" if isinstance(inp, Rounded) else "Linear")
        inp = inp.as_subclass(Tensor)
        MICROBATCHES.append(is_first_microbatch)
        multiple = RECIPES[-1].multiple
        assert (
            inp.shape[0] % multiple == inp.shape[1] % multiple == len(self.weight) % multiple == 0
        )
        weight = self.weight
        if is_first_microbatch:
            self.rounded = weight.detach().clone()
        if is_first_microbatch is False:
            weight = self.rounded + (weight - weight.detach())
        return F.linear(inp, weight, self.bias if self.bias.numel() else None)


class TransformerEngineAdam(FusedAdam):
    """As apex's, but it takes sharded weights, and `zero_grad` has its argument."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *,
        bias_correction=True, adam_w_mode=True, capturable=False, master_weights=False,
        master_weight_dtype=torch.float32, exp_avg_dtype=torch.float32,
        exp_avg_sq_dtype=torch.float32, use_decoupled_grad=False, store_param_remainders=False,
        set_grad_none=None,
    ):  # fmt: skip
        assert not master_weights and set_grad_none is None
        super().__init__(
            params, lr, bias_correction, betas, eps, adam_w_mode, weight_decay, amsgrad
        )
        CALLS[-1] = "TransformerEngineAdam"

    def zero_grad(self, set_to_none=None):
        super().zero_grad()

    def step(self, closure=None, grad_scaler=None):
        super().step(closure)


MODULES = {  # as in `fake_libraries`
    "transformer_engine": {},
    "transformer_engine.common": {},
    "transformer_engine.common.recipe": {
        kind.__name__: kind
        for kind in (
            Float8CurrentScaling,
            Float8BlockScaling,
            MXFP8BlockScaling,
            NVFP4BlockScaling,
        )
    },
    "transformer_engine.pytorch": {
        "Linear": Linear,
        "autocast": autocast,
        "is_fp8_available": is_fp8_available,
        "is_fp8_block_scaling_available": is_fp8_block_scaling_available,
        "is_mxfp8_available": is_mxfp8_available,
        "is_nvfp4_available": is_nvfp4_available,
    },
    "transformer_engine.pytorch.quantization": {"RecipeState": RecipeState},
    "transformer_engine.pytorch.optimizers": {},
    "transformer_engine.pytorch.optimizers.fused_adam": {
        "FusedAdam": TransformerEngineAdam,
        "DTensor": DTensor,
    },
}
