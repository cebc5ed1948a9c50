"""Who computes attention of packed rows: ours and every peer, each with why it may be absent."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench.harness.documents import SyntheticRow
from bench.harness.providers import (
    Absence,
    Provider,
    backend_absence,
    gpu_package,
    never,
    unless_on_gpu,
)
from bench.ops import package_peers, torch_peers
from bench.ops.torch_peers import Attend, Leaves
from metamorph_kernels import interval_attention, interval_attention_fp8


@dataclass(frozen=True)
class RowAttention:
    """`prepare(row, leaves)` does all that depends on the lengths only and returns the attention.

    Of the leaves q [T, Hq, D], k and v [T, Hkv, D] it may use shapes, dtype and device. The
    attention of such leaves is [T, Hq, D]. `no_backward(device)` says why there is none, or None.
    """

    prepare: Callable[[SyntheticRow, Leaves], Attend]
    masks: tuple[str, ...] = ("spans", "documents", "one document")
    no_backward: Absence = never
    most_tokens: int | None = None
    float8: bool = False  # or all products in the dtype of the inputs

    def refusal(self, row: SyntheticRow) -> str | None:
        """Why it cannot compute this row on any device, or None where it can."""
        if row.mask not in self.masks:
            return OTHER_MASKS[self.masks]
        if self.most_tokens is not None and row.tokens > self.most_tokens:
            return f"a T x T mask; run up to {self.most_tokens} tokens"
        return None


def _triton(row: SyntheticRow, leaves: Leaves) -> Attend:
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="triton")


def _gluon(row: SyntheticRow, leaves: Leaves) -> Attend:
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="gluon")


def in_torch(row: SyntheticRow, leaves: Leaves) -> Attend:
    """Plain PyTorch, document by document: the yardstick of all but `ours fp8`."""
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention(q, k, v, intervals, impl="torch")


def _fp8(row: SyntheticRow, leaves: Leaves) -> Attend:
    device = leaves[0].device
    intervals = row.intervals(device)
    impl = "triton" if device.type == "cuda" else "torch"
    return lambda q, k, v: interval_attention_fp8(q, k, v, intervals, impl=impl)


def float8_in_torch(row: SyntheticRow, leaves: Leaves) -> Attend:
    """What plain PyTorch makes of the same roundings: the yardstick of `ours fp8`."""
    intervals = row.intervals(leaves[0].device)
    return lambda q, k, v: interval_attention_fp8(q, k, v, intervals, impl="torch")


CAUSAL, ONE, SPANS = ("documents", "one document"), ("one document",), ("spans",)
OTHER_MASKS = {
    CAUSAL: "only causal masks",
    ONE: "only one causal document",
    SPANS: "no spans, no corners",
}
TRITON = backend_absence(interval_attention, "triton")
FLASH_4 = gpu_package("flash_attn.cute", "flash_attn_varlen_func")
CUDNN = gpu_package("cudnn.flex_attention", "create_mask_plan")
MAGI = gpu_package("magi_attention.api", "flex_flash_attn_func")
PROVIDERS = (
    Provider("ours triton", RowAttention(_triton), TRITON),
    Provider("ours gluon", RowAttention(_gluon), backend_absence(interval_attention, "gluon")),
    Provider("ours torch", RowAttention(in_torch)),
    Provider(
        "ours fp8",
        RowAttention(_fp8, no_backward=lambda device: "forward only", float8=True),
        lambda device: TRITON(device) if device.type == "cuda" else None,
    ),
    Provider(
        "FlexAttention",
        RowAttention(torch_peers.flex, no_backward=unless_on_gpu("no backward on a CPU")),
    ),
    Provider(
        "FlexAttention on flash-attn 4",
        RowAttention(partial(torch_peers.flex, backend="FLASH")),
        FLASH_4,
    ),
    Provider("cuDNN flex", RowAttention(package_peers.cudnn_by_document), CUDNN),
    Provider("cuDNN flex, one row", RowAttention(package_peers.cudnn_by_row), CUDNN),
    Provider(
        "MagiAttention",
        RowAttention(partial(package_peers.magi, slices=package_peers.row_slices, apart=True)),
        MAGI,
    ),
    Provider(
        "MagiAttention, corners",
        RowAttention(
            partial(package_peers.magi, slices=package_peers.corner_slices, apart=False), SPANS
        ),
        MAGI,
    ),
    Provider("SDPA dense mask", RowAttention(torch_peers.dense_mask, most_tokens=8192)),
    Provider("SDPA cuDNN", RowAttention(torch_peers.cudnn, ONE), gpu_package("torch")),
    Provider(
        "varlen_attn",
        RowAttention(torch_peers.varlen, CAUSAL),
        gpu_package("torch.nn.attention.varlen", "varlen_attn"),
    ),
    Provider(
        "flash-attn 2",
        RowAttention(package_peers.flash("flash_attn"), CAUSAL),
        gpu_package("flash_attn", "flash_attn_varlen_func"),
    ),
    Provider(
        "flash-attn 3",
        RowAttention(package_peers.flash("flash_attn_interface"), CAUSAL),
        gpu_package("flash_attn_interface", "flash_attn_varlen_func"),
    ),
    Provider("flash-attn 4", RowAttention(package_peers.flash("flash_attn.cute"), CAUSAL), FLASH_4),
    Provider("xformers", RowAttention(package_peers.xformers, CAUSAL), gpu_package("xformers.ops")),
)
