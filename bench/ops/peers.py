"""Who computes attention of packed rows: ours and every peer, each with why it may be absent."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bench.harness.documents import PackedRow
from bench.ops import package_peers, torch_peers
from bench.ops.torch_peers import Attend, Leaves
from metamorph_kernels import interval_attention, interval_attention_fp8
from metamorph_kernels.absence import triton_absence

Absence = Callable[[torch.device], str | None]


@dataclass(frozen=True)
class Provider:
    """`prepare(row, leaves)` does all that depends on the lengths only and returns the attention.

    Of the leaves q [T, Hq, D], k and v [T, Hkv, D] it may use shapes, dtype and device. The
    attention of such leaves is [T, Hq, D]. `absence(device)` says why a provider cannot run there,
    or None; `no_backward(device)` likewise.
    """

    name: str
    prepare: Callable[[PackedRow, Leaves], Attend]
    absence: Absence
    masks: tuple[str, ...] = ("spans", "documents", "one document")
    no_backward: Absence = lambda device: None
    most_tokens: int | None = None
    float8: bool = False  # or all products in the dtype of the inputs

    def reason(self, row: PackedRow, device: torch.device) -> str | None:
        """Why it cannot compute this row on this device, or None where it can."""
        if row.mask not in self.masks:
            return OTHER_MASKS[self.masks]
        if self.most_tokens is not None and row.tokens > self.most_tokens:
            return f"a T x T mask; run up to {self.most_tokens} tokens"
        return self.absence(device)


def gpu_package(module: str, name: str | None = None) -> Absence:
    """A probe: is this a GPU, and can `module`, or `name` of it, be imported?"""

    def absence(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "needs a GPU"
        try:
            imported = importlib.import_module(module)
            if name is not None:  # one package may be no more than the folder that holds another
                getattr(imported, name)
        except Exception as error:  # a package built for another torch fails in its own ways
            top = module.partition(".")[0]
            if importlib.util.find_spec(top) is None:
                return "not installed"
            return f"{type(error).__name__}: {error}"
        return None

    return absence


def _always(device: torch.device) -> None:
    return None


def _triton(row: PackedRow, leaves: Leaves) -> Attend:
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="triton")


def in_torch(row: PackedRow, leaves: Leaves) -> Attend:
    """Plain PyTorch, document by document: the yardstick of all but `ours fp8`."""
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="torch")


def _fp8(row: PackedRow, leaves: Leaves) -> Attend:
    device = leaves[0].device
    intervals = row.intervals(device)
    impl = "triton" if device.type == "cuda" else "torch"
    return lambda q, k, v: interval_attention_fp8(q, k, v, intervals, impl=impl)


def float8_in_torch(row: PackedRow, leaves: Leaves) -> Attend:
    """What plain PyTorch makes of the same roundings: the yardstick of `ours fp8`."""
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention_fp8(q, k, v, intervals, impl="torch")


CAUSAL, ONE, SPANS = ("documents", "one document"), ("one document",), ("spans",)
OTHER_MASKS = {
    CAUSAL: "only causal masks",
    ONE: "only one causal document",
    SPANS: "no spans, no corners",
}
FLASH_4 = gpu_package("flash_attn.cute", "flash_attn_varlen_func")
CUDNN = gpu_package("cudnn.flex_attention", "create_mask_plan")
MAGI = gpu_package("magi_attention.api", "flex_flash_attn_func")
PROVIDERS = (
    Provider("ours triton", _triton, lambda device: triton_absence(device.type)),
    Provider("ours torch", in_torch, _always),
    Provider(
        "ours fp8",
        _fp8,
        lambda device: triton_absence("cuda") if device.type == "cuda" else None,
        no_backward=lambda device: "forward only",
        float8=True,
    ),
    Provider(
        "FlexAttention",
        torch_peers.flex,
        _always,
        no_backward=lambda device: "no backward on a CPU" if device.type == "cpu" else None,
    ),
    Provider("FlexAttention on flash-attn 4", partial(torch_peers.flex, backend="FLASH"), FLASH_4),
    Provider("cuDNN flex", package_peers.cudnn_by_document, CUDNN),
    Provider("cuDNN flex, one row", package_peers.cudnn_by_row, CUDNN),
    Provider(
        "MagiAttention",
        partial(package_peers.magi, slices=package_peers.row_slices, apart=True),
        MAGI,
    ),
    Provider(
        "MagiAttention, corners",
        partial(package_peers.magi, slices=package_peers.corner_slices, apart=False),
        MAGI,
        masks=SPANS,
    ),
    Provider("SDPA dense mask", torch_peers.dense_mask, _always, most_tokens=8192),
    Provider("SDPA cuDNN", torch_peers.cudnn, gpu_package("torch"), masks=ONE),
    Provider(
        "varlen_attn",
        torch_peers.varlen,
        gpu_package("torch.nn.attention.varlen", "varlen_attn"),
        masks=CAUSAL,
    ),
    Provider(
        "flash-attn 2",
        package_peers.flash("flash_attn"),
        gpu_package("flash_attn", "flash_attn_varlen_func"),
        masks=CAUSAL,
    ),
    Provider(
        "flash-attn 3",
        package_peers.flash("flash_attn_interface"),
        gpu_package("flash_attn_interface", "flash_attn_varlen_func"),
        masks=CAUSAL,
    ),
    Provider("flash-attn 4", package_peers.flash("flash_attn.cute"), FLASH_4, masks=CAUSAL),
    Provider("xformers", package_peers.xformers, gpu_package("xformers.ops"), masks=CAUSAL),
)
