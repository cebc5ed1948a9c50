"""Stand-ins for optional libraries: their documented signatures and layouts in plain PyTorch.

They take the parameters of `signatures.json`, no more and in their order, and overwrite what the
real ones overwrite.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph import libraries
from tests import fake_transformer_engine
from tests.fake_adam import FusedAdam
from tests.fake_attention import (
    CALLS,
    BlockDiagonalCausalMask,
    flash_attn_3_func,
    flash_attn_3_varlen_func,
    flash_attn_4_varlen_func,
    flash_attn_func,
    flash_attn_varlen_func,
    memory_efficient_attention,
    varlen_attn,
)
from tests.fake_lmms_eval import GenerationResult, ModelManifest, TokenCounts, lmms
from tests.fake_trackio import Run, TrackioImage, init


class LigerRMSNormFunction:
    @staticmethod
    def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        CALLS.append("LigerRMSNormFunction")
        assert offset == 0.0 and casting_mode == "llama" and not in_place
        x = X.float()
        return W * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(X.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


class LigerRopeFunction(torch.autograd.Function):
    """[B, heads, T, D] in and out; writes where q and k lie if heads follow tokens in memory."""

    @staticmethod
    def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
        CALLS.append("LigerRopeFunction")
        assert cos.shape == sin.shape == (1, q.shape[2], q.shape[3]) and cos.dtype == q.dtype
        ctx.save_for_backward(cos, sin)
        q, k = (x.transpose(1, 2).contiguous() for x in (q, k))
        for x in (q, k):
            x.data.copy_(_turn(x, cos, sin))
        return q.transpose(1, 2), k.transpose(1, 2)

    @staticmethod
    def backward(ctx, dq, dk):
        cos, sin = ctx.saved_tensors
        dq, dk = (_turn(d.transpose(1, 2), cos, -sin).transpose(1, 2) for d in (dq, dk))
        return dq, dk, None, None, None, None, None


class LigerSiLUMulFunction(torch.autograd.Function):
    """silu(a) * b; the backward writes its results over a and b."""

    @staticmethod
    def forward(ctx, a, b, gate_multiplier=1.0, down_multiplier=1.0):
        assert gate_multiplier == down_multiplier == 1
        CALLS.append("LigerSiLUMulFunction")
        ctx.save_for_backward(a, b)
        return F.silu(a) * b

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        sigmoid = a.sigmoid()
        slope = sigmoid * (1 + a * (1 - sigmoid))
        results = dc * slope * b, dc * a * sigmoid
        for saved, result in zip((a, b), results, strict=True):
            saved.data.copy_(result)
        return a, b, None, None


def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    CALLS.append("fused_rms_norm_affine")
    assert not torch.is_autocast_enabled("cpu")  # it would cast what it is given
    assert input.dtype == weight.dtype and normalized_shape == weight.shape
    x = input.float()
    return (x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight).to(input.dtype)


class FusedRMSNorm(torch.nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, memory_efficient=False):
        super().__init__()


class GroupNorm(torch.nn.Module):
    """Channels-last alone, for the numbers that its kernels know; needs nothing of `device`."""

    SUPPORTED_CHANNELS = frozenset([128, 256])
    SUPPORTED_GROUPS = frozenset([16, 32])

    def __init__(
        self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None, act=""
    ):
        super().__init__()
        assert affine and not act and device is not None
        assert num_groups in self.SUPPORTED_GROUPS and num_channels in self.SUPPORTED_CHANNELS
        self.num_groups, self.eps = num_groups, eps
        options = {"device": device, "dtype": dtype}
        self.weight = torch.nn.Parameter(torch.ones(num_channels, **options))
        self.bias = torch.nn.Parameter(torch.zeros(num_channels, **options))

    def forward(self, input):
        CALLS.append("GroupNorm")
        assert input.is_contiguous(memory_format=torch.channels_last)
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


FLASH_ATTN = {
    "flash_attn": {
        "flash_attn_func": flash_attn_func,
        "flash_attn_varlen_func": flash_attn_varlen_func,
    },
}
MODULES = {  # distribution: the modules it brings, and what of them is used
    "flash-attn": FLASH_ATTN,
    "flash-attn-3": {
        "flash_attn_interface": {
            "flash_attn_func": flash_attn_3_func,
            "flash_attn_varlen_func": flash_attn_3_varlen_func,
        },
    },
    "flash-attn-4": FLASH_ATTN
    | {"flash_attn.cute": {"flash_attn_varlen_func": flash_attn_4_varlen_func}},
    "torch-varlen": {"torch.nn.attention.varlen": {"varlen_attn": varlen_attn}},
    "xformers": {
        "xformers": {},
        "xformers.ops": {"memory_efficient_attention": memory_efficient_attention},
        "xformers._cpp_lib": {"_cpp_library_load_exception": None, "_built_with_cuda": True},
        "xformers.ops.fmha": {},
        "xformers.ops.fmha.attn_bias": {"BlockDiagonalCausalMask": BlockDiagonalCausalMask},
    },
    "liger-kernel": {
        "liger_kernel": {},
        "liger_kernel.ops": {
            "LigerRMSNormFunction": LigerRMSNormFunction,
            "LigerRopeFunction": LigerRopeFunction,
            "LigerSiLUMulFunction": LigerSiLUMulFunction,
        },
    },
    "apex": {
        "apex": {},
        "apex.optimizers": {"FusedAdam": FusedAdam},
        "apex.normalization": {"FusedRMSNorm": FusedRMSNorm},
        "apex.normalization.fused_layer_norm": {"fused_rms_norm_affine": fused_rms_norm_affine},
    },
    "apex-group-norm": {
        "apex": {},
        "apex.optimizers": {"FusedAdam": FusedAdam},
        "apex.contrib": {},
        "apex.contrib.group_norm": {"GroupNorm": GroupNorm},
    },
    "torchao": {
        "torchao": {},
        "torchao.float8": {"Float8LinearConfig": None, "convert_to_float8_training": None},
    },
    "transformer-engine": fake_transformer_engine.MODULES,
    "trackio": {"trackio": {"init": init, "Image": TrackioImage, "Run": Run}},
    "lmms-eval": {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    },
    "torchtitan": {
        "torchtitan": {},
        "torchtitan.trainer": {"Trainer": None},
    },
}


def remove_all(monkeypatch) -> None:
    """As on a machine that has none of them."""
    for modules in MODULES.values():
        for name in modules:
            monkeypatch.setitem(sys.modules, name, None)


def install(monkeypatch, distribution: str, leave_out: str = "", **others) -> None:
    """Put one of them in place, without the name `leave_out` and with `others` in its place."""
    CALLS.clear()
    for name, contents in MODULES[distribution].items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, origin="stand-in"), []
        vars(module).update({key: others.get(key, contents[key]) for key in contents})
        vars(module).pop(leave_out, None)
        monkeypatch.setitem(sys.modules, name, module)


def pretend_gpu(monkeypatch) -> None:
    """Let probes find a GPU on any device type."""
    monkeypatch.setattr(libraries, "gpu_absence", lambda device_type, oldest, below=None: None)
